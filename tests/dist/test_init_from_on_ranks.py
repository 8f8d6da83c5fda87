"""A run that begins with the weights of a checkpoint is the same run on any number of ranks, under every strategy."""

from pathlib import Path

import pytest

from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import assert_close, history, train, train_ranks

SHORT = ["trainer.max_steps=6", "data.micro_rows=1"]


@pytest.fixture(scope="module")
def source(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    assert train([*tiny_words(atlas.store, folder / "run"), *SHORT], folder / "log") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def one_rank(atlas: Atlas, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_rank")
    words = [*tiny_words(atlas.store, folder / "run"), *SHORT, f"model.init_from={source}"]
    assert train(words, folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3"))]
)
def test_two_ranks_begin_with_the_same_weights(
    atlas: Atlas, source: Path, one_rank: Path, tmp_path: Path, strategy: str
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny_words(atlas.store, run), *SHORT, f"model.init_from={source}", f"trainer.strategy={strategy}"]
    assert train_ranks(words, 2, log) == [0, 0], log.read_text()
    assert_close(run, one_rank)
    assert log.read_text().count("initial weights: ") == 1
    # It goes on from where the source was, not from random weights.
    assert history(run)[0]["loss"] < history(source)[0]["loss"]


def test_every_rank_hears_of_weights_that_are_missing_and_one_says_so(atlas: Atlas, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [*tiny_words(atlas.store, tmp_path / "run"), *SHORT, f"model.init_from={tmp_path / 'gone'}"]
    assert train_ranks([*words, "trainer.strategy=ddp"], 2, log) == [1, 1]
    assert log.read_text().count("no such checkpoint or run directory") == 1

"""Promise 4 for the order of the data, with gloo ranks that each have their own loader processes."""

from pathlib import Path

import pytest

from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import assert_close, train, train_ranks


@pytest.mark.slow
def test_ranks_and_their_loader_workers_change_at_each_start(atlas: Atlas, tmp_path: Path) -> None:
    """A run with weights in one process; the same run on two ranks with two workers each, then on four, then on one."""
    log = tmp_path / "log"
    weighted = ["data.weights={second: 3}", "data.micro_rows=1", "trainer.max_steps=12"]
    assert train([*tiny_words(atlas.store, tmp_path / "whole"), *weighted], log) == 0, log.read_text()
    words = [*tiny_words(atlas.store, tmp_path / "parts"), *weighted]
    for n_ranks, workers, step in ((2, 2, 5), (4, 1, 9), (1, 0, 12)):
        more = [f"data.workers={workers}", f"trainer.max_steps={step}", "trainer.strategy=ddp"]
        assert train_ranks([*words, *more], n_ranks, log) == [0] * n_ranks, log.read_text()
    assert_close(tmp_path / "parts", tmp_path / "whole")


def test_another_weight_is_another_run_and_an_unknown_data_set_is_refused(atlas: Atlas, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = [*tiny_words(atlas.store, tmp_path / "run"), "trainer.validate_every_steps=0"]
    assert train([*words, "data.weights={secnd: 3}"], log) == 1
    assert "no data set secnd to weigh: it has first, second" in log.read_text()
    assert train([*words, "data.weights={second: 3}", "trainer.max_steps=4"], log) == 0, log.read_text()
    assert train([*words, "data.weights={second: 2}", "trainer.max_steps=6"], log) == 1
    assert "data.weights: {'second': 3} in the checkpoint, {'second': 2} now" in log.read_text()


def test_the_rows_of_a_step_stay_those_of_the_first_start(atlas: Atlas, tmp_path: Path) -> None:
    """Four ranks choose two rows of each lane; on two ranks and on one the run keeps them."""
    log = tmp_path / "log"
    whole = [*tiny_words(atlas.store, tmp_path / "whole"), "data.rows_per_lane=2", "trainer.max_steps=6"]
    assert train(whole, log) == 0, log.read_text()
    words = [*tiny_words(atlas.store, tmp_path / "run"), "data.rows_per_lane=null"]
    for n_ranks, step in ((4, 2), (2, 4), (1, 6)):
        assert train_ranks([*words, f"trainer.max_steps={step}"], n_ranks, log) == [0] * n_ranks, log.read_text()
    assert log.read_text().count("data.rows_per_lane=2, chosen for 4 ranks") == 1
    assert_close(tmp_path / "run", tmp_path / "whole")

"""The panel on two ranks: the training is the same to the bit without it, and so are the scores after a kill."""

import signal
from pathlib import Path

import pytest

from gm_train.config.parts import STRATEGIES
from tests.conftest import Atlas, tiny_words
from tests.support.panels import (
    die_in_the_second_panel_of_rank_0,
    is_of_panel,
    panel_words,
    rows_of,
    without_panel,
)
from tests.support.training_runs import start_ranks, train, train_ranks

#: Without zero2, which keeps weights as ddp does.
SPREADING = [
    pytest.param(name, marks=pytest.mark.slow if name == "zero3" else [])
    for name in STRATEGIES
    if name not in ("single", "zero2")
]


@pytest.fixture(scope="module")
def alone(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert train(panel_words(atlas, folder / "run", "data.micro_rows=1"), folder / "log") == 0
    return folder / "run"


@pytest.mark.parametrize("strategy", SPREADING)
def test_two_ranks(atlas: Atlas, alone: Path, tmp_path: Path, strategy: str) -> None:
    run, plain, log = tmp_path / "run", tmp_path / "plain", tmp_path / "log"
    more = ["data.micro_rows=1", f"trainer.strategy={strategy}"]
    codes = start_ranks(panel_words(atlas, run, *more), 2, log, die_in_the_second_panel_of_rank_0).join()
    assert codes[0] == -signal.SIGKILL
    assert train_ranks(panel_words(atlas, run, *more), 2, log) == [0, 0], log.read_text()
    assert train_ranks([*tiny_words(atlas.store, plain), *more], 2, log) == [0, 0], log.read_text()
    rows = rows_of(run)
    assert without_panel(rows) == rows_of(plain)
    panels = [row for row in rows if is_of_panel(row)]
    expected = [row for row in rows_of(alone) if is_of_panel(row)]
    assert [row["step"] for row in panels] == [row["step"] for row in expected] == [3, 6, 9, 12]
    for ours, theirs in zip(panels, expected, strict=True):
        for key in ("panel_masked", "panel_missing"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key

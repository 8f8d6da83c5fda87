"""The columns of metrics.jsonl: what each one holds, and that a run records all of them."""

from pathlib import Path

from gm_train.loading.position import Position
from gm_train.objective.batches import StepInfo
from gm_train.run.records import METRICS, read_rows
from gm_train.train.columns import COLUMNS, FinishedStep
from gm_train.train.step_module import StepResult
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import train


def test_columns_are_functions_of_a_finished_step() -> None:
    info = StepInfo(n_targets=9, n_pairs=4, n_cells=3, n_tokens=60, n_slots=80, sample_hash=255, lanes={})
    result = StepResult(info, loss=1.5, l_lang=1.4, l_pathway=1.0, grad_norm=2.0, lr=1e-3, finite=True)
    step = FinishedStep(Position(step=7, cells=21, lanes={0: (0, 3)}), 2.0, 0.5, time=3.0, result=result, flops=8e9)
    row = {name: value(step) for name, value in COLUMNS.items()}
    assert row == {
        "step": 7,
        "position": 21,
        "loss": 1.5,
        "l_lang": 1.4,
        "l_pathway": 1.0,
        "grad_norm": 2.0,
        "lr": 1e-3,
        "tokens_per_s": 30.0,
        "step_s": 2.0,
        "loader_s": 0.5,
        "tokens": 60,
        "flops": 8e9,
        "fill": 0.75,
        "sample_hash": "00000000000000ff",
        "time": 3.0,
    }


def test_every_column_is_in_every_row_of_a_step(atlas: Atlas, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    assert train([*tiny_words(atlas.store, run), "trainer.max_steps=3"], log) == 0
    steps = [row for row in read_rows(run / METRICS) if "loss" in row]
    assert len(steps) == 3
    assert all(set(row) == set(COLUMNS) for row in steps)

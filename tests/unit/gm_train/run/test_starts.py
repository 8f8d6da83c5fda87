"""What a run has cost: GPU-hours and core-hours over its starts, lost steps included."""

from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError
from gm_train.run.starts import ENVIRONMENT, Cost, cost_of, refuse_no_run, start_of


def start(hour: int, step: int, ranks: int, **facts: Any) -> dict[str, Any]:
    return {"time": f"1970-01-01T{hour:02d}:00:00+00:00", "step": step, "ranks": ranks, "threads": 4} | facts


def row(step: int, hour: float, step_s: float = 1800.0) -> dict[str, Any]:
    return {"step": step, "time": 3600 * hour, "step_s": step_s}


def test_core_hours_count_threads_and_gpu_hours_count_ranks() -> None:
    """An hour on two ranks of four threads, then two hours on eight GPUs; steps take half an hour each."""
    starts = [start(0, 0, 2, device="cpu", gpus=[]), start(5, 2, 8, device="cuda", gpus=["H100"] * 4)]
    cost = cost_of(starts, [row(1, 0.5), row(2, 1.0), row(3, 6.0), row(4, 7.0)])
    assert cost == Cost(gpu_hours=16.0, core_hours=8.0, steps_share=pytest.approx(16 / 24))


def test_steps_that_were_lost_and_made_again_cost_twice() -> None:
    """The first start reached step 3 after 3 hours and was killed; the next one went on from step 1."""
    starts = [start(0, 0, 1, device="cuda", last_row=3 * 3600.0), start(4, 1, 1, device="cuda")]
    cost = cost_of(starts, [row(1, 1.0), row(2, 5.0), row(3, 6.0)])
    assert cost is not None
    assert cost.gpu_hours == 3 + 2
    assert cost.steps_share == pytest.approx(1.5 / 5)


def test_a_start_from_an_earlier_checkpoint_makes_all_later_steps() -> None:
    """Step 100 could not be read again after the second start, so the third one went on from step 50, hours later."""
    starts = [
        {"time": f"1970-01-01T{at}+00:00", "step": step, "ranks": 1, "device": "cuda", **last}
        for at, step, last in (
            ("00:00:00", 0, {"last_row": 110.0}),
            ("00:01:50", 100, {"last_row": 120.0}),
            ("02:46:40", 50, {}),
        )
    ]
    rows = [row(step, step / 3600, 1.0) for step in range(1, 51)]
    rows += [row(step, (10_000 + step - 50) / 3600, 1.0) for step in range(51, 101)]
    assert all(start_of(starts, one["step"]) is starts[0 if one["step"] <= 50 else 2] for one in rows)
    cost = cost_of(starts, rows)
    assert cost is not None
    assert cost.gpu_hours * 3600 == pytest.approx(110 + 10 + 50)
    assert cost.steps_share == pytest.approx(100 / 170)


def test_starts_of_earlier_versions_are_told_apart_by_their_gpus() -> None:
    assert cost_of([start(0, 0, 1, gpus=["A100"])], [row(1, 1.0)]) == Cost(1.0, 0.0, 0.5)
    assert cost_of([start(0, 0, 1, gpus=[])], [row(1, 1.0)]) == Cost(0.0, 4.0, 0.5)


def test_without_a_record_there_is_no_cost() -> None:
    assert cost_of([], [row(1, 1.0)]) is None
    assert cost_of([{"step": 0, "ranks": 1}], [row(1, 1.0)]) is None
    assert cost_of([start(1, 0, 1)], []) == Cost(0.0, 0.0, 0.0)


def test_a_step_belongs_to_the_last_start_before_it() -> None:
    starts = [start(0, 0, 1), start(1, 4, 2), start(2, 4, 3)]
    made = [start_of(starts, step) for step in (4, 5)]
    assert [found and found["ranks"] for found in made] == [1, 3]
    assert start_of([], 1) is None


def test_a_run_that_has_just_begun_is_a_run(tmp_path: Path) -> None:
    """Its settings and its first start are written before its first step."""
    (tmp_path / "config.yaml").touch()
    with pytest.raises(DataError, match=r"is a folder, not a run directory: give the run\.dir"):
        refuse_no_run(tmp_path)
    (tmp_path / ENVIRONMENT).touch()
    refuse_no_run(tmp_path)

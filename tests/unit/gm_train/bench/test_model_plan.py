"""Plans that a benchmark refuses, and the arithmetic of its figures."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_train.bench.measure.peaks import Peaks, roofline_seconds
from gm_train.bench.measure.turns import Spread
from gm_train.bench.model import sections
from gm_train.bench.model.model_plan import ModelPlan
from gm_train.bench.model.model_report import crossover
from gm_train.bench.model.workload import Shape
from gm_train.cli.main import main
from gm_train.config.check import ConfigError
from gm_train.config.schema import Config, ModelConfig
from gm_train.plan.kernel_costs import costs

PEAKS = Peaks(flops=100.0, side=1, bandwidth=10.0)


def test_fewer_than_ten_steps_are_refused_as_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "model", "--steps", "9", "--out", str(tmp_path / "out")]) == 2
    assert "fewer than 10 timed steps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_figure_comes_from_fewer_than_ten_steps() -> None:
    with pytest.raises(ValueError, match="too few"):
        sections.measured([1.0] * 9, Shape(1, 1, 1, 1, 1, ((1, 1),)), 1.0)
    assert Spread.of([1.0] * 10).median == 1.0


def test_all_problems_of_a_plan_are_listed_at_once() -> None:
    plan = ModelPlan(Config(), parts=("race", "rase"), names=("mamba",), lengths=(9000, 0), steps=3, warmup=0)
    with pytest.raises(ConfigError) as raised:
        plan.check()
    for word in ("rase", "mamba", "9000", "--lengths 0", "--steps 3", "--warmup 0", "language=missing"):
        assert word in str(raised.value)


def test_what_was_not_run_is_listed() -> None:
    notes = "\n".join(ModelPlan(Config(), parts=("race",), names=("genemamba",), compiled=False).left_out())
    for word in ("ladder", "published", "torch.compile", "gm-train bench gpu", "checkpoints"):
        assert word in notes


def race_rows(ours: dict[int, float], theirs: dict[int, float]) -> list[dict[str, object]]:
    return [
        {"contender": name, "length": length, "tokens_per_s": value}
        for name, found in (("a", ours), ("b", theirs))
        for length, value in found.items()
    ]


def test_the_crossover_lies_where_the_lines_meet() -> None:
    # b loses 4 with every doubling, a stays: they meet half-way (in the logarithm) between 512 and 1,024.
    lengths = (512, 1024, 2048)
    rows = race_rows(dict.fromkeys(lengths, 10.0), {512: 12.0, 1024: 8.0, 2048: 4.0})
    found = crossover(rows, "a", "b")
    assert found is not None
    assert found["length"] == pytest.approx(512 * math.sqrt(2))
    assert found["ahead"] == ["b", "a"]


def test_no_crossover_is_invented() -> None:
    ahead = crossover(race_rows({512: 3.0, 1024: 3.0}, {512: 2.0, 1024: 1.0}), "a", "b")
    assert ahead == {"length": None, "ahead": ["a", "a"]}
    assert crossover(race_rows({512: 3.0}, {512: 2.0}), "a", "b") is None
    rows = [*race_rows({512: 3.0}, {512: 2.0}), {"contender": "b", "workload": "1024", "out_of_memory": True}]
    assert crossover(rows, "a", "b") is None


@given(st.floats(1.05, 20.0), st.floats(1.05, 20.0))
def test_a_crossover_lies_between_the_lengths_that_enclose_it(before: float, after: float) -> None:
    found = crossover(race_rows({512: 1.0, 4096: after}, {512: before, 4096: 1.0}), "a", "b")
    assert found is not None
    assert 512 <= found["length"] <= 4096


def test_a_roofline_is_the_slower_of_arithmetic_and_memory() -> None:
    assert roofline_seconds(200.0, 10.0, PEAKS) == 2.0
    assert roofline_seconds(200.0, 50.0, PEAKS) == 5.0
    row = sections.against_roofline({"flops": 200.0, "bytes": 50.0, "seconds": [10.0, 20.0, 10.0]}, PEAKS)
    assert (row["least_s"], row["bound"], row["fraction"]) == (5.0, "memory", 0.5)
    assert PEAKS.best(Peaks(50.0, 2, 20.0)) == Peaks(100.0, 1, 20.0)


@pytest.mark.parametrize("aggregation", ["gate", "mean", "head_gate"])
def test_the_kernels_of_a_step_have_all_its_operations(aggregation: str) -> None:
    from gm_train.plan.flops import Work, training_flops

    config = ModelConfig(d_model=64, n_layers=3, head_dim=32, aggregation=aggregation)
    found = costs(config, 500, slots=1000, n_targets=150, n_parameters=10_000, narrow=4)
    total = sum(cost.count * cost.flops for cost in found)
    assert total == pytest.approx(1000 * training_flops(config, 500, Work(0.0, 0.15)))
    assert ("aggregation" in {cost.name for cost in found}) == (aggregation != "head_gate")
    assert all(cost.n_bytes > 0 and math.isfinite(cost.n_bytes) for cost in found)


def test_rates_are_those_of_real_tokens_step_by_step() -> None:
    # Batches with twice the tokens take twice as long: all steps have the same rate.
    shape = Shape(cells=3.0, tokens=1500.0, targets=200.0, slots=4000.0, context=500.0, each=((2, 1000), (4, 2000)))
    row = sections.measured([2.0, 4.0] * 5, shape, flops_per_token=7.0)
    assert (row["tokens_per_s"], row["cells_per_s"], row["flops_per_s"]) == (500.0, 1.0, 3500.0)
    assert row["tokens_per_s_quartiles"] == [500.0, 500.0]
    assert row["step_s"] == 3.0


def test_speed_ups_are_ratios_of_cells_a_second() -> None:
    rows = sections.with_speed_ups([{"cells_per_s": 2.0}, {"cells_per_s": 3.0}, {"out_of_memory": True}])
    assert [row["over_published"] for row in rows] == [1.0, 1.5, None]
    assert [row["over_previous"] for row in rows] == [1.0, 1.5, None]

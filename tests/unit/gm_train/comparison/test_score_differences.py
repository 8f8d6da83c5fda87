"""Differences of scores: signs, spreads and words, and which controls stand beside them."""

import math
from pathlib import Path

import pytest

from gm_train.comparison.compared_run import read_run
from gm_train.comparison.run_groups import RunGroup, group_runs
from gm_train.comparison.score_differences import compare_scores, difference, group_figure
from gm_train.evaluation.figures import Figure, Row
from gm_train.evaluation.masked.masked_task import MaskedGenesTask
from tests.support.run_folders import write_run, write_scores


@pytest.mark.parametrize(
    ("value", "base", "more_is_better", "expected"),
    [
        ((5.0, 0.3), (4.0, 0.4), True, (1.0, 0.5, "level")),  # exactly two standard deviations
        ((5.01, 0.3), (4.0, 0.4), True, (1.01, 0.5, "better")),
        ((5.01, 0.3), (4.0, 0.4), False, (1.01, 0.5, "worse")),
        ((3.0, 0.3), (4.5, 0.4), False, (-1.5, 0.5, "better")),
        ((3.0, None), (4.5, 0.4), True, (-1.5, 0.4, "worse")),
        ((3.0, None), (4.5, None), True, (-1.5, None, "spread unknown")),
    ],
)
def test_a_difference_has_a_sign_a_spread_and_a_word(
    value: tuple[float, float | None],
    base: tuple[float, float | None],
    more_is_better: bool,
    expected: tuple[float, float | None, str],
) -> None:
    def of(pair: tuple[float, float | None]) -> Figure:
        return {"mean": pair[0], "sd": pair[1]}

    found = difference(of(value), of(base), more_is_better)
    assert found["mean"] == pytest.approx(expected[0])
    assert found["sd"] == (None if expected[1] is None else pytest.approx(expected[1]))
    assert found["outcome"] == expected[2]


def test_the_figure_of_several_runs_is_over_the_runs() -> None:
    one: Figure = {"mean": 3.0, "sd": 0.1}
    other: Figure = {"mean": 5.0, "sd": 9.0}
    assert group_figure([one]) == one
    assert group_figure([one, other]) == {"mean": 4.0, "sd": pytest.approx(math.sqrt(2))}


def compared(groups: list[RunGroup], results: dict[str, list[Row]], kind: str) -> list[Row]:
    """The rows of one kind on plain ranks."""
    rows = compare_scores(groups, results, MaskedGenesTask, "plain", MaskedGenesTask.columns)
    return [row for row in rows if row["kind"] == kind]


def test_groups_are_compared_with_the_first_one_and_stand_beside_every_control(tmp_path: Path) -> None:
    runs = []
    results = {}
    for name, seed, mean, words in (
        ("a0", 0, 20.0, ()),
        ("a1", 1, 24.0, ()),
        ("b", 0, 30.0, ("optim.lr=1e-3",)),
        ("c", 0, 22.0, ("optim.lr=2e-3",)),
    ):
        run = write_run(tmp_path / name, f"run.seed={seed}", *words)
        results[str(run)] = write_scores(run, mean)
        runs.append(read_run(run))
    # A control may depend on the model's shape, as random weights do.
    for row in results[str(tmp_path / "c")]["masked"]:
        if row["scored"] == "random weights":
            row["top1"] = {"mean": 99.0, "sd": 1.0}
    groups = group_runs(runs)
    of_group = {group.label: [results[run.name] for run in group.runs] for group in groups}
    assert [(row["scored"], row["runs"], row["top1"]["mean"]) for row in compared(groups, of_group, "group")] == [
        ("[1]", 2, 22.0),
        ("[2]", 1, 30.0),
        ("[3]", 1, 22.0),
    ]
    first, second, _ = compared(groups, of_group, "group")
    assert first["top1"]["sd"] == pytest.approx(math.sqrt(8))
    assert second["top1"]["sd"] == pytest.approx(1.0)
    better, level = compared(groups, of_group, "difference")
    assert (better["scored"], better["top1"]["mean"], better["top1"]["outcome"]) == ("[2] - [1]", 8.0, "better")
    assert better["top1"]["sd"] == pytest.approx(3.0)
    assert better["cross_entropy"]["outcome"] == "worse"  # less is better
    assert (level["scored"], level["top1"]["mean"], level["top1"]["outcome"]) == ("[3] - [1]", 0.0, "level")
    controls = [row["scored"] for row in compared(groups, of_group, "control")]
    assert controls == [
        *MaskedGenesTask.controls[:-1],
        "random weights of [1], [2]",
        "random weights of [3]",
    ]


def test_a_run_without_a_column_of_the_table_is_left_out(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, f"optim.lr={lr}") for name, lr in (("a", 1e-3), ("b", 2e-3)))
    scores = [write_scores(a, 20.0), write_scores(b, 20.0)]
    groups = group_runs([read_run(a), read_run(b)])
    for row in scores[1]["masked"]:
        del row["top10"]
    of_group = {"[1]": scores[:1], "[2]": scores[1:]}
    assert [row["scored"] for row in compared(groups, of_group, "group")] == ["[1]"]
    assert compared(groups, of_group, "difference") == []
    assert compared(groups, {"[1]": [], "[2]": []}, "group") == []

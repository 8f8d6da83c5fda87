"""Tables of an ablation against hand-made evaluations with known differences."""

import math
from pathlib import Path
from typing import Any

import pytest

from gm_train.ablation.page_picture import draw_ablation
from gm_train.ablation.score_tables import Scored, score_tables, summary_tables
from gm_train.ablation.verdicts import verdicts
from gm_train.evaluation.figures import Row
from tests.support.run_folders import write_scores

#: The model's scores by variant and seed; the controls have 10, 11, 12 and so on.
SCORES = {"base": {0: 20.0, 1: 22.0, 2: 24.0}, "other": {0: 30.0, 1: 33.0, 2: 33.0}}


def evaluated(folder: Path, tasks: tuple[str, ...] = ("masked", "probes"), **facts: Any) -> Scored:
    of: dict[str, dict[int, Row]] = {}
    for variant, seeds in SCORES.items():
        for seed, score in seeds.items():
            run = folder / f"{variant}{seed}"
            run.mkdir()
            of.setdefault(variant, {})[seed] = write_scores(run, score, tasks=tasks, **facts)
    return Scored(of, 0.0)


def rows_of(tables: list[Row], task: str, ranks: str) -> dict[str, Row]:
    """The rows of the first table of a task, by what they are of."""
    table = next(table for table in tables if (table["task"], table["ranks"]) == (task, ranks))
    return {row["scored"]: row for row in table["rows"]}


def test_variants_differences_and_controls_stand_in_one_table(tmp_path: Path) -> None:
    rows = rows_of(score_tables(evaluated(tmp_path)), "masked", "plain")
    assert list(rows) == [
        "base", "other", "other - base", "order control", "frequency by rank", "frequency", "random weights",
    ]  # fmt: skip
    assert rows["base"]["top1"] == {"mean": 22.0, "sd": 2.0}
    assert rows["other"]["top1"] == {"mean": 32.0, "sd": pytest.approx(math.sqrt(3))}
    # Differences 10, 11, 9: mean 10, sd 1, t 4.3027.
    found = rows["other - base"]["top1"]
    assert found["mean"] == pytest.approx(10.0)
    assert found["high"] - 10 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-5)
    assert found["outcome"] == "better"
    assert rows["other - base"]["cross_entropy"]["outcome"] == "worse"  # less is better
    assert rows["order control"]["top1"] == {"mean": 10.0, "sd": None}
    assert [row["kind"] for row in rows.values()] == ["variant"] * 2 + ["difference"] + ["control"] * 4


def test_a_control_that_depends_on_the_variant_has_a_row_for_each(tmp_path: Path) -> None:
    scored = evaluated(tmp_path)
    for seed, results in scored.of["other"].items():
        for row in results["masked"]:
            if row["scored"] == "random weights":
                row["top1"] = {"mean": 50.0 + seed, "sd": 0.0}
    rows = rows_of(score_tables(scored), "masked", "dithered")
    assert rows["random weights (base)"]["top1"] == {"mean": 13.0, "sd": None}
    assert rows["random weights (other)"]["top1"] == {"mean": 51.0, "sd": 1.0}
    assert "order control" in rows


def test_titles_do_not_name_the_numbers_of_one_evaluation(tmp_path: Path) -> None:
    titles = [table["title"] for table in score_tables(evaluated(tmp_path, ("missing", "probes", "robustness")))]
    assert "Missing genes of validation cells, plain ranks" in titles
    assert not [title for title in titles if "20" in title or "±" in title]


def test_a_column_that_some_splits_lack_is_over_the_others(tmp_path: Path) -> None:
    scored = evaluated(tmp_path)
    for seed, results in scored.of["other"].items():
        for row in results["masked"]:
            if seed == 1:
                del row["top1"]
    rows = rows_of(score_tables(scored), "masked", "plain")
    assert rows["other"]["top1"]["mean"] == pytest.approx(31.5)
    assert rows["other - base"]["top1"]["mean"] == pytest.approx(9.5)  # 10 and 9
    assert rows["other - base"]["top10"]["mean"] == pytest.approx(10.0)


def test_the_summary_has_the_main_columns_of_all_tasks(tmp_path: Path) -> None:
    plain, dithered = summary_tables(evaluated(tmp_path))
    assert (plain["ranks"], dithered["ranks"]) == ("plain", "dithered")
    assert [column[0] for column in plain["columns"]] == [
        "masked.cross_entropy", "probes.linear_accuracy", "probes.knn_accuracy",
    ]  # fmt: skip
    rows = {row["scored"]: row for row in plain["rows"]}
    assert rows["base"]["probes.knn_accuracy"]["mean"] == 22.0
    # Each control stands where a task has it.
    assert "probes.knn_accuracy" in rows["PCA"]
    assert "masked.cross_entropy" not in rows["PCA"]
    assert "masked.cross_entropy" in rows["order control"]
    assert [row["kind"] for row in plain["rows"]].index("control") == 3


def test_verdicts_name_the_base_the_best_control_and_pca(tmp_path: Path) -> None:
    found = [line for line in verdicts(evaluated(tmp_path, ("probes",))) if "nearest neighbours" in line]
    assert found[0] == (
        "Accuracy of nearest neighbours (%), plain ranks: other - base +10.0 [+7.5, +12.5] better; "
        "base - random weights +10.0 [+5.0, +15.0] better; base - PCA +12.0 [+7.0, +17.0] better; "
        "other - random weights +20.0 [+15.7, +24.3] better; other - PCA +22.0 [+17.7, +26.3] better."
    )


@pytest.mark.parametrize(
    ("task", "stronger", "score", "said"),
    [
        # Less is better: the order control has 10, the others more.
        ("masked", "frequency", 2.0, "base - frequency +20.00 [+15.03, +24.97] worse; other"),
        ("missing", "nearest neighbours", 30.0,
         "base - nearest neighbours -8.0 [-13.0, -3.0] worse; base - PCA +12.0"),
        ("probes", "PCA", 30.0, "base - PCA -8.0 [-13.0, -3.0] worse; other - PCA"),
    ],
)  # fmt: skip
def test_verdicts_are_against_the_best_control(
    tmp_path: Path, task: str, stronger: str, score: float, said: str
) -> None:
    scored = evaluated(tmp_path, (task,))
    for results in scored.all():
        for row in results[task]:
            if row["scored"] == stronger:
                row.update({key: {"mean": score, "sd": 0.0} for key in row if key not in ("ranks", "scored")})
    assert said in next(line for line in verdicts(scored) if "plain" in line)


def test_variants_are_compared_with_the_bases_that_are_named(tmp_path: Path) -> None:
    scored = evaluated(tmp_path, ("probes",))
    three = {**scored.of, "third": scored.of["other"]}
    named = Scored(three, 0.0, {"third": "other"})
    rows = [row["scored"] for row in score_tables(named)[0]["rows"] if row["kind"] == "difference"]
    assert rows == ["other - base", "third - other"]
    assert "third - other +0.0 [+0.0, +0.0] not shown" in verdicts(named)[0]
    assert "third - base" not in verdicts(named)[0]
    # Its base was not chosen with --variants.
    assert Scored({"base": three["base"], "third": three["third"]}, 0.0, {"third": "other"}).pairs == []


def test_one_variant_has_no_difference_and_still_its_controls(tmp_path: Path) -> None:
    scored = evaluated(tmp_path, ("probes",))
    alone = Scored({"base": scored.of["base"]}, 0.0)
    assert [row["scored"] for row in summary_tables(alone)[0]["rows"]] == [
        "base", "PCA", "variable genes", "random weights",
    ]  # fmt: skip
    assert "base - PCA" in verdicts(alone)[0]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw_ablation("How is it with $1 and $2?", evaluated(tmp_path), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

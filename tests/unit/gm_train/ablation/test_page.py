"""The page of an ablation, of runs that were never trained: costs, notes, tables, and what a failed write leaves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError
from data_shards.store.manifest import Manifest
from gm_train.ablation.definition import Definition
from gm_train.ablation.definition_file import read_definition
from gm_train.ablation.page import ablation_results, render_markdown, render_text, write_page
from gm_train.ablation.planned_runs import plan_runs
from gm_train.ablation.run_ablation import AblationRun, prepare_runs
from gm_train.run.records import append_rows, read_rows
from tests.support.run_folders import TOKENS, write_run, write_scores
from tests.support.tiny_ablations import write_definition


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Definition, list[AblationRun]]:
    """Two variants with two seeds; the second variant is better by 1 and by 2."""
    path = write_definition(tmp_path, {"seeds": [0, 1], "split.every_seed": True})
    definition = read_definition(path)
    runs = prepare_runs(definition, plan_runs(path, definition), None, tmp_path / "out")
    for number, run in enumerate(runs):
        write_run(run.record.directory, f"run.seed={run.planned.seed}")
        run.record.begin()
        write_scores(run.record.directory, [20.0, 21.0, 20.0, 22.0][number], tasks=("masked",))
    return definition, runs


def made(scored: tuple[Definition, list[AblationRun]]) -> tuple[dict[str, Any], Any]:
    return ablation_results("tiny", *scored, ["ablate", "tiny"])


def test_the_costs_are_those_of_the_records(scored: tuple[Definition, list[AblationRun]]) -> None:
    results, _ = made(scored)
    first = results["runs"][0]
    assert (first["variant"], first["seed"], first["steps"], first["tokens"]) == ("masked", 0, 4, 4 * TOKENS)
    assert (first["seconds"], first["parameters"], first["cells"]) == (4 * 1800.0, 12_345, 28)
    assert first["loss"] == 1.0  # that of the last step
    assert first["flops"] is None  # by a version that did not count them


def test_flops_are_those_of_the_steps_each_once(scored: tuple[Definition, list[AblationRun]]) -> None:
    metrics = scored[1][0].record.directory / "metrics.jsonl"
    rows = [row for row in read_rows(metrics) if "loss" in row]
    again = [rows[3] | {"flops": 7e12}]  # made again after a start
    metrics.unlink()
    append_rows(metrics, [row | {"flops": 2e12} for row in rows] + again + [{"step": 4, "val_loss": 1.0}])
    results, _ = made(scored)
    assert results["runs"][0]["flops"] == 13e12
    # Of the two runs of this variant, one has counted.
    assert "| masked | 2 | 4 | 450 | 28 | 12,345 | 13.0 |" in render_markdown(results)


def test_notes_say_what_seeds_vary_and_widen_intervals(scored: tuple[Definition, list[AblationRun]]) -> None:
    results, _ = made(scored)
    # Of the stores; the evaluations have 20 and 60 cells.
    ratios = []
    for run in scored[1]:
        (entry,) = Manifest.load(run.record.request.store).datasets
        ratios.append(entry.n_test / entry.n_train)
    assert results["held_out_ratio"] == pytest.approx(sum(ratios) / 4)
    assert results["held_out_ratio"] != pytest.approx(20 / 60)
    assert "The medians of genes are of all cells" in " ".join(results["notes"])
    notes = " ".join(results["notes"])
    assert "and which donors are held out" in notes
    assert "Nadeau and Bengio" in notes
    assert "Scores are of 20 test cells, split by donor" in notes
    definition, runs = scored
    again = ablation_results("tiny", Definition(**{**vars(definition), "split": type(definition.split)()}), runs, [])[0]
    assert again["held_out_ratio"] == 0.0
    assert "all seeds have the same split" in " ".join(again["notes"])


def test_other_tokens_objectives_and_revisions_are_noted(scored: tuple[Definition, list[AblationRun]]) -> None:
    _, runs = scored
    other = runs[1].record
    content = json.loads((other.evaluation / "eval.json").read_text())
    content["cells"]["hash"] = "c" * 64
    content["model"]["language"] = "missing"
    content["tasks"]["asked"].append("regulation")
    (other.evaluation / "eval.json").write_text(json.dumps(content))
    environment = json.loads((other.directory / "environment.json").read_text())
    environment["starts"][0] |= {"git": "def", "processor": "Xeon"}
    (other.directory / "environment.json").write_text(json.dumps(environment))
    notes = " ".join(made(scored)[0]["notes"])
    assert "Not scored in every run, as the `eval.md` of a run explains: regulation (such as of missing)." in notes
    for text in ("other tokens", "different objectives (masked, missing)", "revisions (abc, def)", "processors"):
        assert text in notes


def test_the_page_shows_scores_differences_and_controls(
    scored: tuple[Definition, list[AblationRun]], tmp_path: Path
) -> None:
    results, by_seed = made(scored)
    written = write_page(results, by_seed, tmp_path)
    assert [path.name for path in written] == ["ablation.md", "ablation.png", "ablation.json"]
    page = (tmp_path / "ablation.md").read_text()
    assert "| masked | 20.00 |" in page
    assert "| missing | 21.50 ± 0.71 |" in page
    # 1 and 2: mean 1.5, sd 0.71, t 12.71 with one degree of freedom.
    half = 12.7062 * math.sqrt(0.5) * math.sqrt(1 / 2 + results["held_out_ratio"])
    assert f"| missing - masked | +1.50 [{1.5 - half:+.2f}, {1.5 + half:+.2f}] not shown |" in page
    assert "| order control | 10.00 |" in page
    assert "Made by `gm-train ablate tiny` with gm-train" in page
    assert "missing - masked" in render_text(results)
    assert json.loads((tmp_path / "ablation.json").read_text()) == results


def test_damage_and_a_folder_that_cannot_be_written_are_named(
    scored: tuple[Definition, list[AblationRun]], tmp_path: Path
) -> None:
    results, by_seed = made(scored)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: cannot be written .*choose another --out"):
        write_page(results, by_seed, tmp_path / "file")
    (scored[1][0].record.evaluation / "eval.json").write_text("{")
    with pytest.raises(DataError, match=r"eval\.json: is damaged .*: remove it, and the same command makes it anew"):
        made(scored)

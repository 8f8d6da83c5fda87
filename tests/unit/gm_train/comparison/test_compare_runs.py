"""`compare_runs`: what can be compared, and what is refused or said aloud instead."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError, OptionError
from gm_train.comparison.compare_runs import compare_runs
from gm_train.comparison.comparison_table import render_markdown, render_text
from gm_train.evaluation.tasks import choose_tasks
from tests.support.run_folders import write_run, write_scores


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs with different objectives, both scored on the same cells."""
    a = write_run(tmp_path / "masked")
    b = write_run(tmp_path / "missing", "objective.language=missing", steps=8)
    write_scores(a, 20.0)
    write_scores(b, 30.0, step=8)
    return a, b


def scored_groups(results: dict[str, Any]) -> set[str]:
    return {row["scored"] for table in results["tables"] for row in table["rows"] if row["kind"] == "group"}


def test_settings_compute_scores_and_words_are_in_both_texts(pair: tuple[Path, Path]) -> None:
    results = compare_runs(pair).results
    assert results["warnings"] == []
    assert {table["task"] for table in results["tables"]} == {task.key for task in choose_tasks(())}
    for render in (render_text, render_markdown):
        text = render(results)
        assert all(str(run) in text for run in pair)
        assert "objective.language" in text
        assert "optim.lr" not in text
        assert all(control in text for task in choose_tasks(()) for control in task.controls)
        assert "+10.0 ± 1.4 better" in text
        assert "+10.00 ± 1.41 worse" in text
        assert "Compute is not equal: tokens of a run are [1] 400, [2] 800." in text
        assert "Losses of different objectives answer different questions" in text
        assert "does not hold what another training seed would change" in text
        assert "Hidden genes of 20 validation cells, dithered ranks" in text
        assert "(mean ± sd" not in text  # over what, the notes say
        assert "dithered ranks (AUROC in %)" in text
        assert "Accuracy of a linear probe (%) on plain ranks: [2] is better than [1] (+10.0 ± 1.4)." in text
        assert "Cross-entropy of hidden genes (nats) on plain ranks: [2] is worse than [1] (+10.00 ± 1.41)." in text


def test_repeated_runs_are_shown_as_a_mean_over_runs(tmp_path: Path) -> None:
    runs = []
    for seed, mean in ((0, 20.0), (1, 22.0)):
        runs.append(write_run(tmp_path / f"seed{seed}", f"run.seed={seed}"))
        write_scores(runs[-1], mean)
    text = render_text(compare_runs(runs).results)
    assert "[1], mean of 2 runs" in text
    assert "21.0 ± 1.4" in text
    assert "mean ± sd" not in text
    assert "Settings that differ" not in text
    assert "another training seed" not in text
    assert "[2]" not in text


def test_a_group_of_which_one_run_was_scored_is_shown_as_a_single_run(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"seed{seed}", f"run.seed={seed}") for seed in range(3)]
    write_scores(runs[1], 20.0)
    comparison = compare_runs(runs)
    text = render_text(comparison.results)
    assert [len(group.runs) for group in comparison.groups] == [3]
    assert "[1], 1 of 3 runs" in text
    assert "20.0 ± 1.0" in text  # over its own seeds
    assert "another training seed" in text
    write_scores(runs[0], 22.0)
    text = render_text(compare_runs(runs).results)
    assert "[1], mean of 2 of 3 runs" in text
    assert "21.0 ± 1.4" in text
    assert "another training seed" not in text


def change(run: Path, how: Callable[[dict[str, Any]], None]) -> None:
    path = run / "eval" / "eval.json"
    results = json.loads(path.read_text())
    how(results)
    path.write_text(json.dumps(results))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda r: r["cells"].update(hash="c" * 64, held_out=19), "it was scored on other cells, genes or splits"),
        (
            lambda r: r["cells"].update(hash="c" * 64, split="test"),
            "it was scored on test cells (there validation cells)",
        ),
        (lambda r: r.update(mask_seeds=2), "it was scored on 2 mask seeds (there 3)"),
        (lambda r: r["cells"].update(label="batch"), "it was scored on the label 'batch' (there 'cell_type')"),
        (lambda r: r["cells"].pop("hash"), "NOT COMPARED: its evaluation, of an earlier version of gm-train"),
    ],
)
def test_scores_of_other_cells_seeds_or_labels_are_not_compared_but_named(
    how: Callable[[dict[str, Any]], None], message: str, pair: tuple[Path, Path]
) -> None:
    change(pair[1], how)
    results = compare_runs(pair).results
    (warning,) = results["warnings"]
    assert warning.startswith(f"{pair[1]}: NOT COMPARED")
    assert message in warning
    assert "gm-train eval" in warning
    assert scored_groups(results) == {"[1]"}
    assert render_text(results).startswith(f"WARNING: {warning}\n")
    assert f"> **Warning**: {warning}" in render_markdown(results)
    assert "better" not in render_text(results)


def test_evaluations_of_earlier_versions_are_of_validation_cells(pair: tuple[Path, Path]) -> None:
    change(pair[1], lambda r: r["cells"].pop("split"))
    assert compare_runs(pair).results["warnings"] == []


def test_a_run_without_an_evaluation_is_named_and_the_rest_is_compared(pair: tuple[Path, Path]) -> None:
    (pair[0] / "eval" / "eval.json").unlink()
    comparison = compare_runs(pair)
    (warning,) = comparison.results["warnings"]
    assert warning.startswith(f"{pair[0]}: NOT EVALUATED")
    assert f"gm-train eval {pair[0]} FILE" in warning
    assert scored_groups(comparison.results) == {"[2]"}
    (pair[1] / "eval" / "eval.json").unlink()
    comparison = compare_runs(pair)
    assert comparison.results["tables"] == []
    text = render_text(comparison.results)
    assert text.count("NOT EVALUATED") == 2
    assert "No scores can be compared" in text
    assert "objective.language" in text
    assert comparison.write(pair[0].parent / "out")[1].read_bytes().startswith(b"\x89PNG")


def test_a_label_that_only_one_evaluation_has_leaves_the_other_tasks_comparable(pair: tuple[Path, Path]) -> None:
    def without_label(results: dict[str, Any]) -> None:
        results["cells"]["label"] = results["label"] = None
        results["probes"] = []

    change(pair[0], without_label)
    results = compare_runs(pair).results
    (warning,) = results["warnings"]
    assert warning.startswith(f"{pair[0]}: it has no scores of the task probes, which {pair[1]} has")
    for task, compared in (("masked", True), ("probes", False)):
        rows = [row for table in results["tables"] if table["task"] == task for row in table["rows"]]
        assert rows
        assert any(row["kind"] == "difference" for row in rows) == compared
    assert "'cell_type' of 20 validation cells" in render_text(results)


def test_pairs_of_other_gene_sets_and_columns_that_one_run_lacks(pair: tuple[Path, Path]) -> None:
    def other_sets(results: dict[str, Any]) -> None:
        results["pairs_facts"]["sets"] = {"trained": {"genes": 7}}

    change(pair[1], other_sets)
    results = compare_runs(pair).results
    (warning,) = results["warnings"]
    assert warning.startswith(f"{pair[1]}: its scores of the task pairs are NOT COMPARED with {pair[0]}")
    of_pairs = [table for table in results["tables"] if table["task"] == "pairs"]
    assert {row["scored"] for table in of_pairs for row in table["rows"] if row["kind"] != "control"} == {"[1]"}
    assert scored_groups(results) == {"[1]", "[2]"}

    def trained_alone(results: dict[str, Any]) -> None:
        results["pairs_facts"]["sets"] = {}
        for row in results["pairs"]:
            del row["static_held_out"], row["contextual_held_out"]

    change(pair[1], trained_alone)
    results = compare_runs(pair).results
    assert results["warnings"] == []
    found = {
        table["title"][:30]: [row["scored"] for row in table["rows"] if row["kind"] != "control"]
        for table in results["tables"]
        if (table["task"], table["ranks"]) == ("pairs", "plain")
    }
    assert found == {
        "Pairs of genes in sets of the ": ["[1]", "[2]", "[2] - [1]"],
        "Pairs of genes in sets that th": ["[1]"],
    }


def test_scores_of_an_earlier_step_or_of_another_store_are_marked(pair: tuple[Path, Path]) -> None:
    write_scores(pair[0], 20.0, step=2)
    write_scores(pair[1], 30.0, step=8, other_store=True)
    results = compare_runs(pair).results
    early, seen = results["warnings"]
    assert early == f"{pair[0]}: its scores are of step 2; it stands at step 4."
    assert f"{pair[1]}: it was scored on a store that it was not trained on" in seen
    assert scored_groups(results) == {"[1]", "[2]"}


def test_files_replace_those_of_an_earlier_comparison(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    comparison = compare_runs(pair)
    assert [path.name for path in comparison.write(out)] == ["compare.md", "compare.png", "compare.json"]
    assert json.loads((out / "compare.json").read_text()) == comparison.results
    assert (out / "compare.md").read_text() == render_markdown(comparison.results)
    other = compare_runs(pair[::-1])
    other.write(out)
    assert json.loads((out / "compare.json").read_text())["groups"][0]["runs"][0]["name"] == str(pair[1])
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.md", "compare.png"]


def test_runs_without_validation_are_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, f"optim.lr={lr}", validated=False) for name, lr in (("a", 1e-3), ("b", 2e-3))]
    assert compare_runs(runs).write(tmp_path / "out")[1].read_bytes().startswith(b"\x89PNG")


def test_what_is_no_pair_of_runs_is_refused_with_a_way_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    with pytest.raises(OptionError, match="one run cannot be compared: give two or more"):
        compare_runs([a])
    (tmp_path / "link").symlink_to(b)
    with pytest.raises(OptionError, match=r"link: is the same run as .*missing: give each run once"):
        compare_runs([a, b, tmp_path / "link"])
    with pytest.raises(DataError, match=r"nowhere: no such run directory: give the run\.dir"):
        compare_runs([a, tmp_path / "nowhere"])
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match=r"plain: is a folder, not a run directory: give the run\.dir"):
        compare_runs([a, tmp_path / "plain"])
    checkpoint = a / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMIT").write_text("{}")
    with pytest.raises(DataError, match=f"is a checkpoint, not a run directory: give {a}"):
        compare_runs([checkpoint, b])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1, "val_loss": 3.0}\n', r"no step in metrics\.jsonl to compare: train with"),
        ("eval/eval.json", '{"cells": ', r"eval\.json: is damaged .*`gm-train eval` writes it anew"),
        ("eval/eval.json", "[]", r"eval\.json: is damaged \(not a JSON object\)"),
        ("environment.json", "{", r"environment\.json: is damaged .*remove it"),
        ("environment.json", "{}", r"environment\.json: is damaged \(its starts lack .*remove it"),
        ("environment.json", '{"starts": [{"step": 0}]}', r"environment\.json: is damaged \(its starts lack .*remove"),
        ("environment.json", '{"starts": [3]}', r"environment\.json: is damaged \(its starts lack .*remove"),
        ("config.yaml", "nonsense: 1\n", "not a configuration of this version"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: str, message: str, pair: tuple[Path, Path]) -> None:
    (pair[1] / name).write_text(content)
    with pytest.raises(DataError, match=message):
        compare_runs(pair)


def test_repeats_of_different_code_are_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"seed{seed}", f"run.seed={seed}") for seed in (0, 1)]
    assert not any("git revisions" in note for note in compare_runs(runs).results["notes"])
    environment = runs[1] / "environment.json"
    environment.write_text(environment.read_text().replace('"abc"', '"def"'))
    assert any(
        "The runs of [1] are of different git revisions (abc, def)" in note
        for note in compare_runs(runs).results["notes"]
    )


def test_a_folder_that_cannot_be_written_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/out: cannot be written \(Not a directory\): choose another --out"):
        compare_runs(pair).write(tmp_path / "file" / "out")

"""`gm-train eval` with files of gene sets and of regulators: `--gene-sets` and `--regulation`."""

import json
import shutil
from pathlib import Path

import pytest

from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.evaluation import score_table
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_gene_sets
from tests.support.evaluation_cases import evaluate


def test_gene_sets_of_the_training_must_be_there_unchanged(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, run, out = write_gene_sets(tmp_path / "sets.gmt"), tmp_path / "run", ["--out", str(tmp_path / "out")]
    fit(load_config(*tiny_words(atlas.store, run), f"objective.pathways={sets}", "trainer.max_steps=2"))
    assert evaluate(run, atlas, "--tasks", "pairs", *out) == 0
    results = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert results["tasks"]["scored"] == ["pairs"]
    assert all({"static_trained", "contextual_trained"} < set(row) for row in results["pairs"])
    shutil.rmtree(tmp_path / "out")
    sets.write_text(sets.read_text().replace("gene0011", "gene0070"))
    capsys.readouterr()
    assert evaluate(run, atlas, "--tasks", "pairs", *out) == 1
    error = capsys.readouterr().err
    assert f"{sets}: not the gene sets that this model was trained with (the hash differs)" in error
    assert "leave pairs out with --tasks masked," in error
    sets.unlink()
    assert evaluate(run, atlas, "--tasks", "pairs", *out) == 1
    assert "the gene sets of the training, sets.gmt, are missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sets_are_not_held_out_where_those_of_the_training_are_not_known(
    atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imported weights have the hash of their sets alone; weights that a run began with may have seen any sets."""
    sets, run, out = write_gene_sets(tmp_path / "sets.gmt"), tmp_path / "run", ["--out", str(tmp_path / "out")]
    fit(load_config(*tiny_words(atlas.store, run), f"objective.pathways={sets}", "trainer.max_steps=2"))
    imported, on = tmp_path / "imported", tmp_path / "on"
    assert main(["export", str(run), str(tmp_path / "exported")]) == 0
    assert main(["import", str(tmp_path / "exported"), str(imported)]) == 0
    fit(load_config(*tiny_words(atlas.store, on), f"model.init_from={imported}", "trainer.max_steps=2"))
    store = ["--store", str(atlas.store)]
    for model, reason in (
        (imported, "the weights were imported without the gene sets of their training: leave out --gene-sets, or"),
        (on, "the run began with weights of another model (model.init_from), which other gene sets may have shaped"),
    ):
        capsys.readouterr()
        assert evaluate(model, atlas, "--tasks", "pairs", "--gene-sets", str(sets), *store, *out) == 1
        error = capsys.readouterr().err
        assert f"--gene-sets {sets}: pairs that the model was trained on cannot be left out, because {reason}" in error
        assert evaluate(model, atlas, "--tasks", "pairs,masked", *store, *out) == 0
        results = json.loads((tmp_path / "out" / "eval.json").read_text())
        assert results["pairs"] == []
        assert not any("trained without gene sets" in note for note in results["notes"])
        shutil.rmtree(tmp_path / "out")


def test_imported_weights_whose_run_had_no_sets_are_scored_on_given_ones(atlas: Atlas, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=2"))
    assert main(["export", str(run), str(tmp_path / "exported")]) == 0
    assert main(["import", str(tmp_path / "exported"), str(tmp_path / "imported")]) == 0
    sets = write_gene_sets(tmp_path / "sets.gmt")
    words = ["--tasks", "pairs", "--gene-sets", str(sets), "--store", str(atlas.store), "--out", str(out)]
    assert evaluate(tmp_path / "imported", atlas, *words) == 0
    assert json.loads((out / "eval.json").read_text())["tasks"]["scored"] == ["pairs"]


def test_gene_sets_that_no_task_takes_or_that_are_none_are_refused(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets, out = write_gene_sets(tmp_path / "sets.gmt"), ["--out", str(tmp_path / "out")]
    assert evaluate(trained, atlas, "--tasks", "masked", "--gene-sets", str(sets), *out) == 2
    assert "--gene-sets: only the task pairs takes gene sets: add pairs to --tasks" in capsys.readouterr().err
    for path, message in (
        (tmp_path / "none.gmt", "none.gmt: no such file: set --gene-sets to a .gmt file"),
        (atlas.files[0], "set --gene-sets to a .gmt file"),
    ):
        assert evaluate(trained, atlas, "--tasks", "pairs", "--gene-sets", str(path), *out) == 1
        assert message in capsys.readouterr().err
    assert evaluate(trained, atlas, "--tasks", "pairs", *out) == 1
    assert "no gene sets of the training are known, and none were given (--gene-sets)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_of_regulation_is_scored_or_refused_with_a_reason(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "table.tsv", tmp_path / "out"
    lines = [f"gene{i:04d}\tgene{j:04d}" for i in range(0, 16) for j in range(16 + i, 80, 7)]
    table.write_text("\n".join(["regulator\ttarget", *lines]) + "\n")
    words = ["--tasks", "regulation", "--regulation", str(table), "--out", str(out)]
    assert evaluate(trained, atlas, "--tasks", "masked", *words[2:]) == 2
    assert "--regulation: only the task regulation takes a table: add regulation to --tasks" in capsys.readouterr().err
    assert evaluate(trained, atlas, "--tasks", "regulation", "--out", str(out)) == 1
    assert "no table of regulators and targets was given (--regulation)" in capsys.readouterr().err
    assert not out.exists()
    assert evaluate(trained, atlas, *words) == 0
    results = json.loads((out / "eval.json").read_text())
    assert results["tasks"]["scored"] == ["regulation"]
    assert results["regulation_facts"]["pairs"] >= 20
    assert score_table.render_text(results) in capsys.readouterr().out
    table.write_text("tf\tgene\n")
    assert evaluate(trained, atlas, *words) == 1
    assert "table.tsv: its first line has 'tf', 'gene', but a table of regulation has" in capsys.readouterr().err

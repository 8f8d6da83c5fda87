"""`gm-train eval` and the report of a run, end to end on a tiny run."""

import html
import json
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from data_shards.errors import DataError
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import latest_whole, open_checkpoint
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.evaluation import score_table
from gm_train.evaluation.integration.integration_task import IntegrationTask
from gm_train.evaluation.tasks import TASKS, choose_tasks
from gm_train.model.genemamba import GeneMamba
from gm_train.train.fit import fit
from gm_train.train.run_report import write_report
from tests.conftest import Atlas, tiny_words, write_cells, write_gene_sets
from tests.support.evaluation_cases import evaluate, store_with_test_cells

#: For tests in which the scores do not matter: one task is quick.
FEW = ("--tasks", "masked")


def test_the_command_writes_tables_pictures_and_report(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = write_gene_sets(tmp_path / "sets.gmt")
    assert evaluate(trained, atlas, "--label", "cell_type", "--gene-sets", str(sets)) == 0
    tokenizer = Tokenizer.load(atlas.store)
    printed = capsys.readouterr().out
    results = json.loads((trained / "eval" / "eval.json").read_text())
    assert score_table.render_text(results) in printed
    assert (trained / "eval" / "eval.md").read_text() == score_table.render_markdown(results)
    assert (results["cells"]["train"], results["cells"]["held_out"]) == (60, 20)
    assert results["cells"]["genes"] == len(tokenizer.vocabulary.genes)
    assert results["cells"]["data_sets_left_out"] == []
    for name in ("eval-scores.png", "eval-embedding-1.png", "eval-embedding-2.png"):
        assert (trained / "eval" / name).read_bytes().startswith(b"\x89PNG")
    report = (trained / "report.html").read_text()
    assert [found["check"] for found in results["checks"]] == [
        "medians drift",
        "pathway coverage",
        "accuracy against macro-F1",
    ]
    for found in results["checks"]:
        assert html.escape(found["text"]) in report
        assert found["text"] in (trained / "eval" / "eval.md").read_text()
    assert "two standard deviations" in report
    assert report.count("data:image/png;base64,") == 8 + 3  # curves, scores and maps
    scored = [task for task in choose_tasks(()) if results.get(task.key)]
    assert {task.key for task in choose_tasks(())} - {task.key for task in scored} == {"integration", "regulation"}
    assert all(name in report for task in scored for name in task.controls)
    assert "Batch integration was not scored: columns of obs with types and batches are needed: add --batch." in report
    assert "http" not in report  # nothing is fetched


def test_every_page_names_the_split_and_warns_of_validation_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Test cells if there are some, others on request. The model card and `compare` name them as well."""
    atlas = store_with_test_cells(tmp_path)
    runs = {split: tmp_path / split for split in ("test", "validation")}
    fit(load_config(*tiny_words(atlas.store, runs["test"]), "trainer.max_steps=2"))
    shutil.copytree(runs["test"], runs["validation"])
    warning = "The held-out cells are validation cells: settings and checkpoints may have been chosen on them"
    for split, words in (("test", []), ("validation", ["--split", "validation"])):
        capsys.readouterr()
        assert evaluate(runs[split], atlas, "--label", "cell_type", "--tasks", "masked,probes", *words) == 0
        results = json.loads((runs[split] / "eval" / "eval.json").read_text())
        assert results["cells"]["split"] == split
        assert main(["export", str(runs[split]), str(tmp_path / f"card-{split}")]) == 0
        pages = [
            runs[split] / "report.html",
            runs[split] / "eval" / "eval.md",
            tmp_path / f"card-{split}" / "README.md",
        ]
        for text in (capsys.readouterr().out, *(html.unescape(page.read_text()) for page in pages)):
            assert f" on {results['cells']['held_out']} {split} cells" in text
            assert f"'cell_type' of {results['label']['held_out']} {split} cells from frozen embeddings" in text
            assert (warning in text) == (split == "validation")
    assert main(["compare", str(runs["test"]), str(runs["validation"])]) == 0
    compared = capsys.readouterr().out
    assert (
        f"{runs['validation']}: NOT COMPARED with {runs['test']}: it was scored on validation cells (there test"
        in compared
    )
    assert "Hidden genes of 20 test cells" in compared
    assert "Hidden genes of 20 validation cells" not in compared


def test_data_sets_without_cells_of_the_split_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data set was added without test cells; the others have some."""
    atlas, run = store_with_test_cells(tmp_path), tmp_path / "run"
    more = write_cells(tmp_path / "more.h5ad", 40, 80, seed=9)
    splits = SplitOptions(by="cell", validation=0.3)
    make_store([more], None, atlas.store, add=True, splits=splits, say=lambda line: None)
    grown = Atlas(atlas.store, (*atlas.files, more))
    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=2"))
    note = "Data sets without test cells are not in these scores: more. `--split validation` scores their validation"
    for words, named in (([], True), (["--split", "validation"], False)):
        capsys.readouterr()
        assert evaluate(run, grown, "--tasks", "masked", *words) == 0
        for text in (capsys.readouterr().out, html.unescape((run / "report.html").read_text())):
            assert (note in text) == named


def test_a_split_that_the_store_does_not_have_is_refused(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(trained, atlas, "--split", "test", "--out", str(tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "0 test cells: an evaluation needs both; hold cells out with `gm-train data shards --test`" in error
    assert "`--split validation`" in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        evaluate(trained, atlas, "--split", "training")
    assert "invalid choice: 'training'" in capsys.readouterr().err


def test_vectors_that_were_made_elsewhere_are_probed_beside_the_model(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    types = ad.read_h5ad(atlas.files[1]).obs["cell_type"].cat.codes.to_numpy()
    np.save(tmp_path / "theirs.npy", np.eye(types.max() + 1, dtype=np.float32)[types])
    np.save(tmp_path / "narrow.npy", types[:, None] + 1)
    given = ["--embedding", str(tmp_path / "theirs.npy"), "--embedding", str(tmp_path / "narrow.npy")]
    command = ["eval", str(trained), str(atlas.files[1]), "--mask-seeds", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--label", "cell_type", "--tasks", "probes", *given]) == 0
    rows = json.loads((tmp_path / "out" / "eval.json").read_text())["probes"]
    found = {row["scored"]: row["knn_accuracy"]["mean"] for row in rows if row["ranks"] == "plain"}
    assert list(found) == ["model", "theirs", "narrow", "PCA", "variable genes", "random weights"]
    assert "loses to theirs (100.0)" in (tmp_path / "out" / "eval.md").read_text()
    assert found["theirs"] == 100.0
    assert found["model"] < 100.0
    assert main([*command, *given]) == 2
    assert "probes, which need --label" in capsys.readouterr().err
    assert evaluate(trained, atlas, "--label", "cell_type", "--out", str(tmp_path / "two"), *given) == 1
    assert "has rows of one count file, and 2 are given" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_batch_integration_is_scored_and_drawn_by_batch(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("scib_metrics")
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    words = ["--label", "cell_type", "--batch", "donor_id", "--tasks", "integration"]
    assert evaluate(run, atlas, *words) == 0
    results = json.loads((run / "eval" / "eval.json").read_text())
    assert results["tasks"]["scored"] == ["integration"]
    assert {row["scored"] for row in results["integration"]} == {"model", *IntegrationTask.controls}
    of = results["integration_of"]
    assert (of["batches"], of["types"]) == (6, 2)
    printed, report = capsys.readouterr().out, (run / "report.html").read_text()
    for text in (printed, report):
        assert "Integration of 6 'donor_id' over 2 'cell_type'" in text.replace("&#x27;", "'")
        assert "random by batch" in text
    assert report.count("data:image/png;base64,") == 8 + 5
    for name in ("1", "1-2", "2", "2-2"):
        assert (run / "eval" / f"eval-embedding-{name}.png").is_file()


def test_batches_that_cannot_be_scored_are_refused(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    for words, code, message in (
        (["--batch", "donor_id"], 2, "--batch: batches are compared among cells of one type, which needs --label"),
        (["--label", "cell_type", "--batch", "nothing"], 1, "no column 'nothing' in obs: --batch can be one of "),
        (["--label", "cell_type", "--tasks", "integration"], 1, "nothing can be scored. Batch integration was not"),
        (
            ["--label", "cell_type", "--batch", "cell_type", "--tasks", "integration"],
            1,
            "'cell_type' is nested in 'cell_type'",
        ),
    ):
        assert evaluate(trained, atlas, *words, "--out", out) == code
        assert message in capsys.readouterr().err
    monkeypatch.setattr("gm_train.evaluation.integration.integration_task.has_scib_metrics", lambda: False)
    words = ["--label", "cell_type", "--batch", "donor_id", "--tasks", "integration", "--out", out]
    assert evaluate(trained, atlas, *words) == 1
    assert "scib-metrics is not installed: pip install 'gm-train[eval]'" in capsys.readouterr().err
    assert not Path(out).exists()


def test_all_models_are_scored_in_the_precision_of_the_run(
    trained: Path, atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that is fp32, whatever the run's own precision."""
    seen: set[bool] = set()
    forward = GeneMamba.forward

    def noted(model: GeneMamba, *inputs: torch.Tensor) -> torch.Tensor:
        seen.add(torch.is_autocast_enabled("cpu"))
        return forward(model, *inputs)

    monkeypatch.setattr(GeneMamba, "forward", noted)
    for precision, out in (("fp32", "plain"), ("bf16", "narrow")):
        seen.clear()
        monkeypatch.setattr("gm_train.evaluation.evaluate.default_precision", lambda *_, p=precision: p)
        words = ["--label", "cell_type", "--max-cells", "30", "--mask-seeds", "1", "--out", str(tmp_path / out)]
        assert evaluate(trained, atlas, *words) == 0
        assert seen == {precision == "bf16"}
        assert json.loads((tmp_path / out / "eval.json").read_text())["model"]["precision"] == precision


def test_the_same_checkpoint_scores_the_same_and_out_moves_the_files(
    trained: Path, atlas: Atlas, tmp_path: Path
) -> None:
    checkpoint = latest_whole(trained / "checkpoints")
    assert checkpoint is not None
    for out in ("first", "second"):
        assert evaluate(checkpoint.path, atlas, "--max-cells", "30", "--out", str(tmp_path / out)) == 0
    first, second = ((tmp_path / out / "eval.json").read_text() for out in ("first", "second"))
    assert first == second
    assert json.loads(first)["probes"] == []
    assert not (tmp_path / "first" / "eval-embedding-1.png").exists()


def test_scores_name_their_checkpoint_and_older_ones_are_marked(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with `make demo` twice: train, evaluate, train further, evaluate again."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run / "eval", ignore_errors=True)
    marked = "Not of the present model"

    def page() -> str:
        return (run / "report.html").read_text()

    assert evaluate(run, atlas, "--label", "cell_type", "--tasks", "masked,probes") == 0
    first = open_checkpoint(run)
    results = json.loads((run / "eval" / "eval.json").read_text())
    assert results["checkpoint"] == {"step": 12, "path": str(first.path), "hash": first.hash}
    named = f"Scores of step 12 ({first.path}, hash {first.hash[:12]})"
    assert named in capsys.readouterr().out
    assert (run / "eval" / "eval.md").read_text().startswith(named)
    assert named in page()
    assert "<h2>Evaluation at step 12</h2>" in page()
    assert marked not in page()

    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=16"))
    assert "gm-train run, 16 steps" in page()
    assert named in page()
    assert f"{marked}.</b> These scores are of step 12; this run stands at step 16." in page()

    # Without a label there is no embedding: that of the earlier evaluation must not stay.
    assert evaluate(run, atlas, *FEW) == 0
    assert "<h2>Evaluation at step 16</h2>" in page()
    assert marked not in page()
    assert named not in page()
    assert not (run / "eval" / "eval-embedding-1.png").exists()
    assert page().count("data:image/png;base64,") == 8 + 1  # curves and scores, no map


def test_scores_of_another_checkpoint_of_the_same_step_or_of_an_unknown_one_are_marked(
    trained: Path, atlas: Atlas, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert evaluate(run, atlas, *FEW) == 0
    path = run / "eval" / "eval.json"
    results = json.loads(path.read_text())
    results["checkpoint"]["hash"] = "0" * 64
    path.write_text(json.dumps(results))
    assert "another checkpoint of step 12" in write_report(run).read_text()
    del results["checkpoint"]
    path.write_text(json.dumps(results))
    assert "The evaluation does not name its checkpoint; this run stands at step 12" in write_report(run).read_text()


def test_scores_of_a_version_with_other_controls_do_not_break_the_report(
    trained: Path, atlas: Atlas, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert evaluate(run, atlas, "--label", "cell_type", "--tasks", "probes") == 0
    path = run / "eval" / "eval.json"
    results = json.loads(path.read_text())
    results["probes"] = [row for row in results["probes"] if row["scored"] != "variable genes"]
    del results["tasks"]
    path.write_text(json.dumps(results))
    page = write_report(run).read_text()
    assert "made by another version of gm-train" in page
    assert "variable genes" in page
    assert "<caption>" in page


def test_the_page_with_the_scores_goes_to_mlflow(atlas: Atlas, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(load_config(*tiny_words(atlas.store, run), "tracking.mlflow=auto", "trainer.max_steps=4"))
    assert evaluate(run, atlas, *FEW) == 0
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    sent = Path(client.download_artifacts(run_id, "report.html", str(tmp_path))).read_text()
    assert "<h2>Evaluation at step 4</h2>" in sent
    assert sent == (run / "report.html").read_text()


def test_an_unreachable_mlflow_does_not_fail_the_evaluation(
    trained: Path, atlas: Atlas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    # Nothing listens on the discard port.
    (run / "tracking.json").write_text(json.dumps({"uri": "http://127.0.0.1:9", "run_id": "a"}))
    assert evaluate(run, atlas, *FEW) == 0
    assert "MLflow did not take the new" in caplog.text
    # A database that is gone is not made anew.
    (run / "tracking.json").write_text(json.dumps({"uri": f"sqlite:///{tmp_path / 'gone.db'}", "run_id": "a"}))
    assert evaluate(run, atlas, *FEW) == 0
    assert not (tmp_path / "gone.db").exists()


def test_a_run_is_evaluated_from_any_folder_and_with_a_store_that_moved(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    shutil.copytree(atlas.store, here / "data" / "cells.zarr")
    monkeypatch.chdir(here)
    assert main(["fit", *tiny_words(Path("data/cells.zarr"), Path("runs/tiny")), "trainer.max_steps=4"]) == 0
    run, out = here / "runs" / "tiny", str(tmp_path / "out")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert evaluate(run, atlas, *FEW) == 0
    moved = shutil.move(here / "data", tmp_path / "moved")
    capsys.readouterr()
    assert evaluate(run, atlas, *FEW, "--out", out) == 1
    error = capsys.readouterr().err
    assert f"{here / 'data/cells.zarr'}: no such store" in error
    assert "If the store of this model has moved, name it with --store" in error
    assert evaluate(run, atlas, *FEW, "--out", out, "--store", f"{moved}/cells.zarr") == 0


@pytest.mark.parametrize("tasks", [["masked"], ["missing"], ["probes"], ["probes,masked"], ["missing", "masked"]])
def test_only_the_tasks_that_are_asked_for_run(tasks: list[str], trained: Path, atlas: Atlas, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    wanted = {key for word in tasks for key in word.split(",")}
    assert evaluate(run, atlas, "--label", "cell_type", "--tasks", *tasks) == 0
    results = json.loads((run / "eval" / "eval.json").read_text())
    assert set(results["tasks"]["asked"]) == set(results["tasks"]["scored"]) == wanted
    assert {task.key for task in TASKS if results.get(task.key)} == wanted
    assert (run / "eval" / "eval-scores.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "eval" / "eval-embedding-1.png").is_file() == ("probes" in wanted)
    shown = (run / "report.html").read_text(), (run / "eval" / "eval.md").read_text()
    assert main(["export", str(run), str(tmp_path / "card")]) == 0
    for text in (*shown, (tmp_path / "card" / "README.md").read_text()):
        assert f"Only these tasks were asked for (--tasks): {', '.join(results['tasks']['asked'])}." in text
        for key, heading in (("masked", "Hidden genes of"), ("missing", "Missing genes of"), ("probes", "frozen emb")):
            assert (heading in text) == (key in wanted)
        assert ("hidden behind the mask token" in text) == ("masked" in wanted)


def test_the_published_reconstruction_is_scored_on_request_alone_and_says_that_it_proves_nothing(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert evaluate(run, atlas, "--tasks", "reconstruction") == 0
    results = json.loads((run / "eval" / "eval.json").read_text())
    assert results["tasks"]["scored"] == ["reconstruction"]
    assert "paper_reconstruction" not in results
    assert evaluate(run, atlas, "--tasks", "reconstruction", "--paper-reconstruction") == 0
    results = json.loads((run / "eval" / "eval.json").read_text())
    assert results["tasks"]["scored"] == ["reconstruction", "paper_reconstruction"]
    copies = [row for row in results["paper_reconstruction"] if row["scored"] == "copy machine"]
    assert [(row["ranks"], row["distance"]["mean"], row["exact"]["mean"]) for row in copies] == [
        ("plain", 11.0, 0.0),
        ("dithered", 11.0, 0.0),
    ]
    for text in ((run / "report.html").read_text(), (run / "eval" / "eval.md").read_text()):
        assert "Repeated cells on plain ranks prove nothing about what the model knows" in text
        assert "There is no order of hidden genes" not in text
    capsys.readouterr()
    out = tmp_path / "few"
    few = ["eval", str(run), *map(str, atlas.files), "--max-cells", "8", "--paper-reconstruction", "--out", str(out)]
    assert main(few) == 1
    assert "--paper-reconstruction joins 10 cells, but 2 held-out cells are scored" in capsys.readouterr().err
    assert not out.exists()


def test_tasks_that_cannot_be_done_or_that_do_not_exist_are_refused(
    trained: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(run / "eval", ignore_errors=True)
    assert evaluate(run, atlas, "--tasks", "probes") == 1
    assert "--tasks probes: nothing can be scored. There are no probes, because no label" in capsys.readouterr().err
    assert evaluate(run, atlas, "--tasks", "masked,cells") == 2
    known = ", ".join(sorted(task.key for task in choose_tasks(())))
    assert f"--tasks cells: no such task: there are {known}" in capsys.readouterr().err
    assert evaluate(run, atlas, "--tasks", ",") == 2
    assert "--tasks names no task: there are " in capsys.readouterr().err
    assert evaluate(run, atlas, "--label", "cell_type", "--tasks", "masked", "--embedding", "obsm:X_scVI") == 2
    assert "--embedding: none of the tasks scores vectors that were made elsewhere: add " in capsys.readouterr().err
    assert not (run / "eval").exists()


def test_wrong_words_are_refused_with_one_message(
    trained: Path, atlas: Atlas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(trained / "nowhere", atlas) == 1
    assert evaluate(trained, atlas, "--label", "nothing") == 1
    assert evaluate(trained, atlas, "--mask-seeds", "0") == 2
    errors = capsys.readouterr().err
    assert "--label can be one of" in errors
    assert "--mask-seeds 0" in errors
    assert "Traceback" not in errors


def test_a_report_before_any_evaluation_says_how_to_get_one(trained: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run <1>"
    run_dir.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "environment.json"):
        shutil.copy(trained / name, run_dir / name)
    (run_dir / "skipped.jsonl").write_text('{"event": "skipped", "step": 3}\n{"event": "rollback", "step": 3}\n')
    text = write_report(run_dir).read_text()
    assert "gm-train eval" in text
    assert "1 (rollbacks: 1)" in text
    assert "run &lt;1&gt;" in text
    assert "best validation loss" in text


def test_a_directory_without_steps_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no step"):
        write_report(tmp_path)

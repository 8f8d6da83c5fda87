"""What is finished is kept, what has changed is refused: with records alone, and end to end on a tiny ablation."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError
from gm_train.ablation.definition_file import read_definition
from gm_train.ablation.planned_runs import plan_runs
from gm_train.ablation.run_ablation import AblationRun, prepare_runs
from gm_train.cli.main import main
from gm_train.run.records import METRICS, append_rows, read_rows
from tests.support.checkpoints import write_checkpoint
from tests.support.tiny_ablations import write_definition


def prepared(folder: Path, changes: dict[str, Any] | None = None) -> list[AblationRun]:
    path = write_definition(folder, changes)
    definition = read_definition(path)
    return prepare_runs(definition, plan_runs(path, definition), None, folder / "out")


def test_a_changed_definition_is_refused_and_names_what_changed(tmp_path: Path) -> None:
    run = prepared(tmp_path)[0]
    run.record.begin()
    assert prepared(tmp_path)[0].record.differences() == []
    with pytest.raises(DataError, match=r"(?s)masked-seed0: was made from something else.*optim.lr was 0.001, is 0.5"):
        prepared(tmp_path, {"variants": {"masked": ["optim.lr=0.5"]}})
    with pytest.raises(DataError, match=r"(?s)store.top_k was 64, is 32.*choose another --out, or remove .*runs"):
        prepared(tmp_path, {"store.top_k": 32})
    with pytest.raises(DataError, match=r"objective.pathways was '.*', is ''"):
        prepared(tmp_path, {"variants": {"masked": ["objective.pathways="]}})
    # Another variant, seed or question changes no run that is there.
    more = {"variants": {"masked": [], "other": ["optim.lr=0.5"]}, "seeds": [0, 5], "question": "Another?"}
    assert [one.planned.name for one in prepared(tmp_path, more)][:2] == ["masked-seed0", "other-seed0"]


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    run = prepared(tmp_path)[0]
    run.record.directory.mkdir(parents=True)
    with pytest.raises(DataError, match="it is not a run of an ablation, or its record is damaged"):
        prepared(tmp_path)
    (run.record.directory / "ablation-run.json").write_text("{")
    with pytest.raises(DataError, match="its record is damaged"):
        prepared(tmp_path)


def test_a_run_is_scored_once_it_has_the_scores_that_are_asked_for(tmp_path: Path) -> None:
    run = prepared(tmp_path)[0]
    record = run.record
    record.begin()
    assert (record.is_trained(), record.is_scored(), run.step()) == (False, False, 0)
    append_rows(record.directory / METRICS, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0}])
    with (record.directory / METRICS).open("a") as file:
        file.write('{"step": 3, "lo')  # a row that is being written
    assert run.step() == 2
    record.finish()
    assert (record.is_trained(), record.is_scored(), run.step()) == (True, False, run.steps)
    record.ask()
    assert not record.is_scored()
    (record.evaluation / "eval.json").write_text("{}")
    assert record.is_scored()
    other = prepared(tmp_path, {"scoring.mask_seeds": 2})[0].record
    assert (other.is_trained(), other.is_scored()) == (True, False)
    other.ask()
    assert not (record.evaluation / "eval.json").exists()


REGULATED = {
    "cells.atlas": {
        "cells": 120, "genes": 120, "cell_types": 3, "programmes": 4, "genes_per_programme": 10, "donors": 6,
        "type_skew": 1.0, "regulators": 2, "targets_per_regulator": 5,
    },
    "scoring.tasks": ["regulation"],
    "scoring.regulation": "$regulation",
}  # fmt: skip


def test_the_table_of_regulation_goes_to_the_evaluation(tmp_path: Path) -> None:
    request = prepared(tmp_path, REGULATED)[0].record.request
    words = request.words(tmp_path)
    table = Path(words[words.index("--regulation") + 1])
    assert table.read_text().startswith("regulator\ttarget\t")
    before = request.content()
    own = tmp_path / "own.tsv"
    own.write_text(table.read_text())
    copied = prepared(tmp_path, REGULATED | {"scoring.regulation": str(own)})[0].record.request
    assert copied.content() == before
    own.write_text("regulator\ttarget\nGENE00000\tGENE00001\n")
    assert copied.content() != before
    with pytest.raises(DataError, match=r"scoring.regulation=nowhere.tsv: no such file"):
        prepared(tmp_path, REGULATED | {"scoring.regulation": "nowhere.tsv"})


def test_another_checkpoint_to_begin_with_is_another_run(tmp_path: Path) -> None:
    first, second = (write_checkpoint(tmp_path / f"seed{seed}", seed).path for seed in (0, 1))

    def begun(checkpoint: Path) -> list[AblationRun]:
        return prepared(tmp_path, {"variants": {"own": [f"model.init_from={checkpoint}"]}})

    begun(first)[0].record.begin()
    shutil.copytree(first, tmp_path / "copy")
    assert begun(tmp_path / "copy")[0].record.differences() == []
    with pytest.raises(DataError, match=r"model.init_from was '[0-9a-f]{64}', is '[0-9a-f]{64}'"):
        begun(second)
    with pytest.raises(DataError, match="nowhere: no such checkpoint or run directory"):
        begun(tmp_path / "nowhere")


def ablate(path: Path, out: Path, *words: str) -> list[str]:
    return ["ablate", str(path), "--out", str(out), *words]


@pytest.mark.slow
def test_a_killed_ablation_continues_and_ends_with_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_definition(tmp_path, {"seeds": [0, 1]}), tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-m", "gm_train.cli", *ablate(path, out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first, second = (out / "runs" / name for name in ("masked-seed0", "missing-seed0"))
    while not (second / "config.yaml").is_file():
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file()}
    assert (first / "eval" / "eval.json") in kept

    assert main(ablate(path, out, "--jobs", "2")) == 0
    printed = capsys.readouterr().out
    assert "1 of 4 runs are finished already" in printed
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for run in out.glob("runs/*"):
        assert [row["step"] for row in read_rows(run / METRICS) if "loss" in row] == list(range(1, 13))
        assert json.loads((run / "eval" / "eval.json").read_text())["checkpoint"]["step"] == 12
    content = json.loads((out / "ablation.json").read_text())
    assert content["command"] == f"gm-train ablate {path} --out {out} --jobs 2"
    assert [(run["variant"], run["seed"]) for run in content["runs"]] == [
        ("masked", 0), ("missing", 0), ("masked", 1), ("missing", 1),
    ]  # fmt: skip
    # The test cells of the store, which neither training nor validation has.
    assert {run["test"] for run in content["runs"]} == {53}
    of = {run.name: json.loads((run / "eval" / "eval.json").read_text()) for run in out.glob("runs/*")}
    table = next(table for table in content["tables"] if table["ranks"] == "plain")
    rows = {row["scored"]: row["top1"] for row in table["rows"]}
    for variant in ("masked", "missing"):
        scores = [of[f"{variant}-seed{seed}"]["masked"][0]["top1"]["mean"] for seed in (0, 1)]
        assert rows[variant]["mean"] == pytest.approx(sum(scores) / 2)
    page = (out / "ablation.md").read_text()
    for text in (
        "Does the tiny ablation run?",
        "order control",
        "TFLOP",
        "torch ",
        "Scores are of 53 test cells",
        "different objectives (masked, missing)",
    ):
        assert text in page
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")

    # All is finished: only the page is made anew. Of one seed, with no interval.
    assert main(ablate(path, out, "--seeds", "0", "--variants", "missing")) == 0
    assert "1 of 1 runs are finished already" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    changed = write_definition(tmp_path, {"seeds": [0, 1], "variants": {"masked": ["optim.lr=0.5"]}})
    assert main(ablate(changed, out)) == 1
    assert "optim.lr was 0.001, is 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_fails_ends_the_command_with_its_last_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Cells have up to 64 tokens, which a row of 32 cannot hold; only the training finds out.
    path = write_definition(tmp_path, {"variants": {"short": ["data.row_length=32"]}, "seeds": [0]})
    assert main(ablate(path, tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert "the training of short-seed0 failed (code 1)" in error
    assert "raise data.row_length" in error
    assert "the same command continues after what is finished" in error


@pytest.mark.slow
def test_ctrl_c_lets_the_training_save_and_leaves_nothing_running(tmp_path: Path) -> None:
    path = write_definition(tmp_path, {"seeds": [0], "variants": {"long": ["trainer.max_steps=100000"]}})
    run = tmp_path / "out" / "runs" / "long-seed0"
    child = subprocess.Popen(
        [sys.executable, "-m", "gm_train.cli", *ablate(path, tmp_path / "out")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (run / METRICS).is_file():
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate()
    assert child.returncode == 1
    assert error.endswith("gm-train: interrupted\n")
    log = (run / "fit.log").read_text()
    assert "stopped by SIGTERM at step" in log
    assert list((run / "checkpoints").glob("step-*/COMMIT"))
    # The training has given its lock back: it is gone, and the same command continues it.
    steps = len(read_rows(run / METRICS))
    time.sleep(1.0)
    assert len(read_rows(run / METRICS)) == steps
    assert not json.loads((run / "ablation-run.json").read_text())["trained"]

"""`gm-train report`: it writes the page again, serves it until Ctrl-C, and refuses what is no run."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


@pytest.fixture(scope="module")
def run(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    fit(load_config(*tiny_words(atlas.store, run_dir)))
    return run_dir


def test_it_writes_the_page_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"written: {run / 'report.html'}\n"
    assert (run / "report.html").read_text() == before


def test_live_serves_until_ctrl_c(run: Path) -> None:
    command = [sys.executable, "-m", "gm_train.cli", "report", str(run), "--live", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert url is not None
        with urllib.request.urlopen(url[0], timeout=300) as answer:
            assert "gm-train run, 12 steps" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, out.strip(), err) == (0, "ended", "")


@pytest.mark.parametrize("live", [[], ["--live"]])
def test_what_is_no_run_is_refused(
    live: list[str], run: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, message in (
        (tmp_path / "nothing", "no such run directory: give the run.dir of a `gm-train fit`"),
        (run / METRICS_NAME, "no such run directory"),
        (atlas.store, "is a token store, not a run directory"),
        (run / "checkpoints" / "step-00000012", f"is a checkpoint, not a run directory: give {run}"),
        (tmp_path, "is an empty folder, not a run directory"),
    ):
        assert main(["report", str(path), *live]) == 1
        assert f"{path}: {message}" in capsys.readouterr().err


METRICS_NAME = "metrics.jsonl"


def test_a_run_without_a_step_has_no_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    (tmp_path / "metrics.jsonl").touch()
    assert main(["report", str(tmp_path)]) == 1
    assert "no step in metrics.jsonl to report: train with `gm-train fit` first" in capsys.readouterr().err


def test_options_that_do_not_go_together_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--port", "8008"]) == 2
    assert "--port: only a page that is served needs one: add --live" in capsys.readouterr().err

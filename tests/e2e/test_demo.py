"""`make demo` with a few steps: the first run, resuming, other cells, starting over."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gm_train.run.records import METRICS, read_rows
from tests.conftest import write_cells

pytestmark = pytest.mark.slow

BUDGET = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the demo's configuration, cut to a few steps."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree("configs", folder / "configs")
    file = folder / "configs" / "demo.yaml"
    text, n = re.subn(r"max_steps: \d+", f"max_steps: {BUDGET}", file.read_text())
    assert n == 1
    file.write_text(text.replace("warmup_steps: 50", "warmup_steps: 2"))
    return folder


def python(folder: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=1800,
    )  # fmt: skip


def demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "gm_train.cli.stories.demo", *words)


def steps(folder: Path) -> int:
    return max(row["step"] for row in read_rows(folder / "runs" / "demo" / METRICS))


def test_demo_end_to_end(folder: Path) -> None:
    first = demo(folder)
    assert first.returncode == 0, first.stderr
    for text in (
        "700 cells", "765 genes", "medians of 765 genes", "validation", "sets in use", "nearest neighbours", "PCA",
        "variable genes", "random weights", "dithered ranks", "test cells from frozen embeddings", "report.html",
    ):  # fmt: skip
        assert text in first.stdout, text
    assert steps(folder) == BUDGET
    run = folder / "runs" / "demo"
    for name in ("config.yaml", "environment.json", "report.html", "eval/eval.json", "eval/eval-scores.png"):
        assert (run / name).stat().st_size > 0
    assert (folder / "runs" / "mlflow.db").is_file()
    results = json.loads((run / "eval" / "eval.json").read_text())
    assert (results["model"]["language"], results["cells"]["split"]) == ("missing", "test")
    assert results["tasks"]["scored"] == ["missing", "probes"]

    # The README's commands work with what the demo made.
    fit = [
        sys.executable,
        "-m",
        "gm_train.cli",
        "fit",
        "configs/demo.yaml",
        "run.dir=elsewhere",
        "tracking.mlflow=none",
    ]
    done = subprocess.run(fit, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == 0, done.stderr


def test_demo_on_other_cells(folder: Path, tmp_path: Path) -> None:
    mine = write_cells(tmp_path / "mine.h5ad", 200, 60, seed=5)
    if not (folder / "runs").exists():
        assert demo(folder).returncode == 0
    before = steps(folder)
    refused = demo(folder, "--data", str(mine))
    assert (refused.returncode, f"`make demo FRESH=1 DATA={mine}` starts over" in refused.stderr) == (1, True)
    missing = demo(folder, "--data", str(tmp_path / "typo.h5ad"), "--fresh")
    assert missing.returncode == 1
    assert "typo.h5ad" in missing.stderr
    assert steps(folder) == before
    fresh = demo(folder, "--data", str(mine), "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert steps(folder) == BUDGET
    assert "cell_type" in fresh.stdout
    assert "without L_pathway" in fresh.stdout

    again = demo(folder, "--data", str(mine))
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout
    assert f"from step {BUDGET}" in again.stdout
    assert steps(folder) == 2 * BUDGET
    # One coherent page: curves and scores of the same step.
    page = (folder / "runs" / "demo" / "report.html").read_text()
    assert f"gm-train run, {2 * BUDGET} steps" in page
    assert f"<h2>Evaluation at step {2 * BUDGET}</h2>" in page
    assert "Not of the present model" not in page

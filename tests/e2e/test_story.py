"""`make story` with few cells and steps, and an atlas with other options."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gm_train.run.records import METRICS, read_rows

pytestmark = pytest.mark.slow

CELLS, STEPS = 300, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the story's configuration, cut to a few steps."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree("configs", folder / "configs")
    file = folder / "configs" / "story.yaml"
    text = file.read_text()
    for key, value in (("max_steps", STEPS), ("every_steps", 4), ("validate_every_steps", 4), ("warmup_steps", 2)):
        text, n = re.subn(rf"\b{key}: \d+", f"{key}: {value}", text)
        assert n
    file.write_text(text)
    return folder


def story(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gm_train.cli.stories.story", *words],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=900,
    )  # fmt: skip


def test_story_end_to_end(folder: Path) -> None:
    first = story(folder, "--cells", str(CELLS))
    assert first.returncode == 0, first.stderr
    run, types = folder / "runs" / "story", folder / "runs" / "story-types"
    rows = read_rows(run / METRICS)
    assert max(row["step"] for row in rows) == STEPS
    assert any("panel_knn" in row for row in rows)
    for page in (run / "report.html", types / "report.html", types / "annotation.md", run / "eval" / "eval.json"):
        assert page.stat().st_size > 0
    for text in ("Robustness", "nearest neighbours", "PCA", "random weights", "test cells"):
        assert text in first.stdout, text

    refused = story(folder, "--cells", str(CELLS + 1))
    assert refused.returncode == 1
    assert "has an atlas with other options: `make story FRESH=1` starts over" in refused.stderr

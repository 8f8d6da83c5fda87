"""`make story` with few cells, few steps and one task, and an atlas with other options."""

import re
import shutil
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TEST, TRAIN, VALIDATION
from gm_train.cli.stories import story
from gm_train.run.records import METRICS, read_rows

pytestmark = pytest.mark.slow

CELLS, STEPS = 300, 4


def test_story_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("configs", tmp_path / "configs")
    file = tmp_path / "configs" / "story.yaml"
    text = file.read_text()
    for key in ("max_steps", "every_steps", "validate_every_steps", "warmup_steps"):
        text, n = re.subn(rf"\b{key}: \d+", f"{key}: {STEPS}", text)
        assert n
    file.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(story, "TASKS", "missing")  # the others take minutes, and have tests of their own
    story.story(CELLS, fresh=False)

    run, types = Path("runs/story"), Path("runs/story-types")
    rows = read_rows(run / METRICS)
    assert max(row["step"] for row in rows) == STEPS
    assert any("panel_knn" in row for row in rows)
    for page in (run / "report.html", types / "report.html", types / "annotation.md", run / "eval" / "eval.json"):
        assert page.stat().st_size > 0
    # The annotation is scored on donors that the pretraining has not seen either.
    splits = [
        open_array(store, "atlas", "split").read(0, CELLS).tolist()
        for store in (Path("runs/story-data/store.zarr"), types / "store.zarr")
    ]
    assert splits[0] == splits[1]
    assert set(splits[0]) == {TRAIN, VALIDATION, TEST}
    shown = capsys.readouterr().out
    assert "gm-train data simulate" in shown
    assert "gm-train annotate" in shown
    with pytest.raises(DataError, match="has an atlas with other options: `make story FRESH=1` starts over"):
        story.story(CELLS + 1, fresh=False)

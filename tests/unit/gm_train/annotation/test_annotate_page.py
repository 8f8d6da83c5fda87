"""The commands of docs/annotate.md run as they stand, and its numbers are those of the code."""

import re
import shlex
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from gm_train.annotation.fine_tuning import PROTOCOLS
from gm_train.cli.main import main
from gm_train.config.schema import TaskConfig
from gm_train.evaluation.calibration import CONFIDENCE, choose_threshold
from tests.conftest import write_cells

PAGE = Path(__file__).parents[4] / "docs" / "annotate.md"
TEXT = PAGE.read_text()


def test_the_page_runs(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny run, and small cells, stand where the page has those of an atlas; trainings are cut short."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pretrained, "runs/atlas")
    write_cells(Path("labelled.h5ad"), 160, 80, seed=3)
    write_cells(Path("new.h5ad"), 20, 80, seed=4)
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall(r"^    (gm-train .*)$", TEXT, re.MULTILINE)]
    assert [command[0] for command in commands] == ["annotate", "predict", "predict", "data", "fit"]
    commands[0] += ["--epochs", "1", "--set", "tracking.mlflow=none"]
    commands[4] += ["trainer.max_steps=2", "optim.warmup_steps=0", "optim.schedule_steps=2", "tracking.mlflow=none"]
    for command in commands:
        assert main(command) == 0, command
    labelled, table = ad.read_h5ad("new-labelled.h5ad"), pd.read_csv("labels.csv")
    for where, name in re.findall(r'^\| `(obs|obsm|uns)\["(\w+)"\]`', TEXT, re.MULTILINE):
        assert name in getattr(labelled, where)
    assert labelled.obs["genemamba_label"].tolist() == table["label"].tolist()
    for written in re.findall(r"`(annotation\.\w+)`", TEXT):
        assert Path("runs/cell-types", written).is_file()


def test_its_numbers_are_those_of_the_code() -> None:
    default, published = PROTOCOLS["default"], PROTOCOLS["published"]
    assert (
        f"{default.settings['trainer.patience']} validations without a lower loss, at most {default.epochs} epochs"
        in TEXT
    )
    assert default.settings["task.head_lr_factor"] == 50
    assert f"Adam at {published.settings['optim.lr']:.0e}".replace("e-0", "e-") in TEXT
    assert f"{published.cells} cells a step, {published.epochs} epochs" in TEXT
    assert published.settings["task.head_layers"] == 4
    assert f"`task.min_cells` training cells ({TaskConfig().min_cells})" in TEXT
    promise = f"are wrong, {TaskConfig().max_error:.0%} by default, with {CONFIDENCE:.0%} confidence"
    assert promise.replace("%", " %") in TEXT
    assert "it takes 44 validation cells that are all right" in TEXT
    assert choose_threshold(np.linspace(0.9, 1, 44), np.ones(44, bool), 0.1) is not None
    assert choose_threshold(np.linspace(0.9, 1, 43), np.ones(43, bool), 0.1) is None

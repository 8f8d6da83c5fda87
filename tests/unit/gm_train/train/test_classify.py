"""`fit` with task.name=classify: it learns, resumes exactly, stops early, and trains what it says."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_shards.errors import DataError
from data_shards.prepare.splits import SplitOptions
from gm_train.checkpoint.find import best_checkpoint, list_checkpoints, load_model, open_checkpoint
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.loading.datamodule import CellDataModule
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from gm_train.train.module import GeneMambaModule
from gm_train.train.patience import Patience
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.counts_to_stores import build, read

BY_CELL = SplitOptions(by="cell", validation=0.25)


def words(atlas: Atlas, run: Path, *more: str) -> list[str]:
    own = ["task.name=classify", "task.label=cell_type", "data.rows_per_lane=2", "task.head_lr_factor=4"]
    return [*tiny_words(atlas.store, run), *own, *more]


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The records without what time decides."""
    timed = ("tokens_per_s", "step_s", "loader_s", "time")
    return [{key: value for key, value in row.items() if key not in timed} for row in read_rows(run / METRICS)]


def weights(checkpoint: Any) -> dict[str, torch.Tensor]:
    return load_model(checkpoint)[0].state_dict()


@pytest.fixture(scope="module")
def pretrained(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pretrained") / "run"
    fit(load_config(*tiny_words(atlas.store, run)))
    return run


def test_it_learns_the_label(atlas: Atlas, pretrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = (f"model.init_from={pretrained}", "trainer.max_steps=40", "optim.schedule_steps=40")
    fit(load_config(*words(atlas, run, *more)))
    steps = [row for row in rows_of(run) if "loss" in row]
    scores = [row for row in rows_of(run) if "val_loss" in row]
    # Half of the cells are of each type.
    assert scores[-1]["val_accuracy"] >= 0.8
    assert scores[-1]["val_macro_f1"] >= 0.8
    assert scores[-1]["val_loss"] < 0.6 < steps[0]["loss"]
    assert "l_lang" not in steps[0]
    checkpoint = best_checkpoint(run)
    assert checkpoint.val_loss == min(row["val_loss"] for row in scores if row["step"] in (20, 40))
    classes = checkpoint.classes
    assert classes is not None
    assert classes.calibration is not None
    assert (classes.names, classes.calibration.n_cells) == (("type 0", "type 1"), 20)
    # The output layer predicts nothing here, and is what it was.
    before, after = weights(open_checkpoint(pretrained)), weights(open_checkpoint(run))
    assert torch.equal(before["output.weight"], after["output.weight"])
    assert not torch.equal(before["embedding.weight"], after["embedding.weight"])
    assert "Not scored: <code>gm-train annotate</code>" in (run / "report.html").read_text()


def test_a_resumed_run_is_the_undisturbed_one(atlas: Atlas, tmp_path: Path) -> None:
    fit(load_config(*words(atlas, tmp_path / "whole")))
    fit(load_config(*words(atlas, tmp_path / "cut", "trainer.max_steps=8")))
    fit(load_config(*words(atlas, tmp_path / "cut", "data.micro_rows=2")))
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    whole, cut = open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "cut")
    assert whole.classes == cut.classes
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(cut).items())


@pytest.mark.parametrize("micro_rows", [1, 4])
def test_micro_batches_do_not_change_the_steps(atlas: Atlas, tmp_path: Path, micro_rows: int) -> None:
    for name, more in (("a", "data.micro_rows=8"), ("b", f"data.micro_rows={micro_rows}")):
        fit(load_config(*words(atlas, tmp_path / name, more, "trainer.max_steps=5", "optim.warmup_steps=0")))
    for a, b in zip(rows_of(tmp_path / "a"), rows_of(tmp_path / "b"), strict=True):
        for key, value in a.items():
            assert b[key] == (value if isinstance(value, str) else pytest.approx(value, abs=2e-5)), key


def test_frozen_trains_the_classifier_alone(atlas: Atlas, pretrained: Path, tmp_path: Path) -> None:
    more = (f"model.init_from={pretrained}", "task.frozen=true", "task.head_layers=2", "task.head_width=16")
    fit(load_config(*words(atlas, tmp_path / "run", *more)))
    before, after = weights(open_checkpoint(pretrained)), weights(open_checkpoint(tmp_path / "run"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert len(after) == len(before) + 4
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_it_stops_when_the_loss_falls_no_more(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A learning rate so high that the loss soon rises.
    more = ("trainer.patience=2", "trainer.validate_every_steps=2", "checkpoint.every_steps=100", "optim.lr=0.3")
    long = (*more, "trainer.max_steps=200", "optim.schedule_steps=200", "optim.warmup_steps=0")
    run = tmp_path / "run"
    fit(load_config(*words(atlas, run, *long)))
    losses = [row["val_loss"] for row in rows_of(run) if "val_loss" in row]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 2
    assert "stopped early (2 validations without a lower loss)" in capsys.readouterr().out
    # The best validation was saved although no checkpoint was due, and it is found.
    assert best_checkpoint(run).step == 2 * (best + 1)
    assert best_checkpoint(run).val_loss == losses[best]
    assert open_checkpoint(run).step == 2 * len(losses)
    fit(load_config(*words(atlas, run, *long)))
    assert "nothing to do at step" in (said := capsys.readouterr().out)
    assert "raise trainer.patience" in said
    # More patience goes on, as if it had been there from the beginning.
    patient = (*long, "trainer.patience=3", f"trainer.max_steps={2 * len(losses) + 4}")
    fit(load_config(*words(atlas, run, *patient)))
    fit(load_config(*words(atlas, tmp_path / "whole", *patient)))
    assert rows_of(run) == rows_of(tmp_path / "whole")


def test_patience() -> None:
    patience = Patience(2, [3.0, 2.0, 2.0])
    assert not patience.is_over
    assert not patience.add(float("nan"))
    assert patience.is_over
    assert patience.add(1.0)
    assert not patience.is_over
    assert not Patience(0, [1.0, 2.0, 3.0]).is_over


def test_losses_of_a_trainer_of_ones_own(atlas: Atlas, tmp_path: Path) -> None:
    config = load_config(*words(atlas, tmp_path / "run"))
    fit(load_config(*words(atlas, tmp_path / "run")))
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step > len(losses):
                losses.append(float(trainer.callback_metrics["loss"]))

    best = ModelCheckpoint(monitor="val_accuracy", mode="max", dirpath=tmp_path / "best")
    trainer = L.Trainer(
        max_steps=12, accelerator="cpu", logger=False, callbacks=[Record(), best], enable_progress_bar=False
    )
    trainer.fit(GeneMambaModule(config), datamodule=CellDataModule(config))
    rows = rows_of(tmp_path / "run")
    assert losses == pytest.approx([row["loss"] for row in rows if "loss" in row], abs=1e-6)
    loaded = GeneMambaModule.load_from_checkpoint(best.best_model_path)
    (scored,) = trainer.validate(loaded, datamodule=CellDataModule(config))
    assert scored["val_accuracy"] == pytest.approx(max(r["val_accuracy"] for r in rows if "val_loss" in r), abs=1e-6)


def test_other_classes_are_another_run(atlas: Atlas, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(load_config(*words(atlas, run, "trainer.max_steps=4")))
    with pytest.raises(DataError, match=r"task.label: 'cell_type' in the checkpoint, 'donor_id' now"):
        fit(load_config(*words(atlas, run, "task.label=donor_id")))
    content = json.loads((list_checkpoints(run / "checkpoints")[-1].path / "identity.json").read_text())
    assert len(content["classes"]) == 64


def test_held_out_cells_of_other_classes_count_as_wrong_only_for_the_threshold(tmp_path: Path) -> None:
    """A class that only held-out cells have, in `fit` and with a Trainer of one's own."""
    cells = ad.read_h5ad(write_cells(tmp_path / "cells.h5ad", 150, 80, seed=1))
    build(tmp_path, [tmp_path / "cells.h5ad"], "before.zarr", top_k=48, splits=BY_CELL)
    held_out = pd.read_parquet(tmp_path / "before.zarr/cells/obs.parquet").loc[
        read(tmp_path / "before.zarr", "cells/split") == 1, "cell_id"
    ]
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str)
    cells.obs.loc[held_out[:7], "cell_type"] = "never learned"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    shutil.rmtree(tmp_path / "m.zarr")
    build(tmp_path, [tmp_path / "cells.h5ad"], "store.zarr", top_k=48, splits=BY_CELL)
    atlas = Atlas(tmp_path / "store.zarr", (tmp_path / "cells.h5ad",))
    config = load_config(*words(atlas, tmp_path / "run", "trainer.validation_cells=99", "checkpoint.every_steps=5"))
    fit(copy.deepcopy(config))
    checkpoint = next(c for c in list_checkpoints(tmp_path / "run/checkpoints") if c.val_loss is not None)
    classes = checkpoint.classes
    assert classes is not None
    assert classes.calibration is not None
    assert classes.names == ("type 0", "type 1")
    assert classes.calibration.n_cells == len(held_out)
    # Scores are over the other cells, by hand and with a Trainer.
    model, _, _ = load_model(checkpoint)
    batches = CellDataModule(config)
    module = GeneMambaModule(config)
    module.model.load_state_dict(model.state_dict())
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    (scored,) = L.Trainer(**quiet).validate(module, datamodule=batches)
    row = next(row for row in rows_of(tmp_path / "run") if "val_loss" in row and row["step"] == checkpoint.step)
    assert scored["val_loss"] == pytest.approx(row["val_loss"], abs=1e-6)
    assert scored["val_accuracy"] == pytest.approx(row["val_accuracy"], abs=1e-6)
    n_known = len(held_out) - 7
    assert row["val_accuracy"] * n_known == pytest.approx(round(row["val_accuracy"] * n_known), abs=1e-6)


def test_a_run_begins_with_the_model_of_an_annotator_and_a_classifier_of_its_own(atlas: Atlas, tmp_path: Path) -> None:
    fit(load_config(*words(atlas, tmp_path / "first", "task.head_layers=2", "task.head_width=9")))
    begin = [f"model.init_from={tmp_path / 'first'}", "trainer.max_steps=1", "optim.lr=1e-12", "optim.weight_decay=0"]
    fit(load_config(*words(atlas, tmp_path / "second", *begin)))
    plain = tiny_words(atlas.store, tmp_path / "third")
    fit(load_config(*plain, *begin))
    first, *others = (weights(open_checkpoint(tmp_path / name)) for name in ("first", "second", "third"))
    for other in others:
        for name, tensor in other.items():
            if not name.startswith("classifier."):
                torch.testing.assert_close(tensor, first[name], rtol=1e-5, atol=1e-8)
    assert not any(name.startswith("classifier.") for name in others[1])


def test_loader_workers_read_the_same_classes(atlas: Atlas, tmp_path: Path) -> None:
    for n_workers in (0, 2):
        fit(load_config(*words(atlas, tmp_path / str(n_workers), f"data.workers={n_workers}", "trainer.max_steps=5")))
    assert rows_of(tmp_path / "0") == rows_of(tmp_path / "2")


def test_a_label_on_a_grown_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        write_cells(tmp_path / f"{name}.h5ad", n, 80, seed=n) for name, n in (("one", 120), ("two", 60), ("three", 50))
    ]
    build(tmp_path, files[:1], top_k=48, splits=BY_CELL)
    atlas, run = Atlas(tmp_path / "s.zarr", tuple(files)), tmp_path / "run"
    patient = ["trainer.patience=3", "trainer.validate_every_steps=1"]
    fit(load_config(*words(atlas, run, *patient, "trainer.max_steps=4")))
    best = [row["val_loss"] for row in rows_of(run) if "val_loss" in row]
    build(tmp_path, files[1:2], top_k=None, splits=BY_CELL, add=True)
    # Losses on the old validation cells do not count any more.
    recorded = read_rows(run / METRICS)
    low = [row | ({"val_loss": -1.0} if "val_loss" in row else {}) for row in recorded]
    (run / METRICS).write_text("".join(json.dumps(row) + "\n" for row in low))
    fit(load_config(*words(atlas, run, *patient, "trainer.max_steps=8")))
    assert len(best) == 4
    assert open_checkpoint(run).step == 8
    assert "stopped early" not in capsys.readouterr().out
    # A new class changes what is learned.
    other = ad.read_h5ad(files[2])
    other.obs["cell_type"] = ["type 2"] * other.n_obs
    other.write_h5ad(files[2])
    build(tmp_path, files[2:], top_k=None, splits=BY_CELL, add=True)
    with pytest.raises(DataError, match=r"the added data sets change the classes of 'cell_type' \(type 2\)"):
        fit(load_config(*words(atlas, run, *patient, "trainer.max_steps=9")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task.label="], "task.label is empty: name the column of obs to learn"),
        (["objective.pathways=x.gmt"], "task.name=classify learns the label alone"),
        (["trainer.strategy=zero2"], "use ddp or fsdp2"),
        (["task.max_error=1.5"], "must lie between 0 and 1"),
        (["task.name=classification"], "is it classify?"),
        (["task.name=pretrain"], "task.label=cell_type: is learned with task.name=classify only"),
        (["trainer.patience=3", "trainer.validate_every_steps=0"], "set trainer.validate_every_steps"),
        (["task=classify"], "is it task.name"),
        (["task.head_layers=0"], "must be greater than 0"),
    ],
)
def test_settings_that_cannot_work(atlas: Atlas, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(*words(atlas, tmp_path / "run", *more))

"""A Lightning Trainer of one's own, on one process."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from data_shards.errors import DataError
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.rows.store_reader import StoreReader
from gm_train.checkpoint.find import load_model
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.config.schema import Config
from gm_train.loading.datamodule import CellDataModule
from gm_train.objective.loss import loss_sums
from gm_train.optim import build_optimizer
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from gm_train.train.module import GeneMambaModule, _refuse_other_strategies
from tests.conftest import Atlas, tiny_words, write_gene_sets
from tests.support.stock_run import Record


@pytest.fixture
def config(atlas: Atlas, tmp_path: Path) -> Config:
    sets = f"objective.pathways={write_gene_sets(tmp_path / 'sets.gmt')}"
    return load_config(*tiny_words(atlas.store, tmp_path / "run"), sets, "objective.pathway_size=[5,200]")


def trainer(tmp_path: Path, *callbacks: L.Callback, max_steps: int = 12, **options: Any) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(
        max_steps=max_steps, accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), **quiet | options
    )


def logged(config: Config, tmp_path: Path, *callbacks: L.Callback, **options: Any) -> Record:
    """Train, and return what was logged."""
    record = Record()
    trainer(tmp_path, *callbacks, record, **options).fit(GeneMambaModule(config), datamodule=CellDataModule(config))
    return record


def test_losses_are_those_of_fit(config: Config, tmp_path: Path) -> None:
    fit(copy.deepcopy(config))
    rows = read_rows(tmp_path / "run" / METRICS)
    best = ModelCheckpoint(monitor="val_loss", dirpath=tmp_path / "best")
    options = {"logger": CSVLogger(tmp_path / "logs"), "log_every_n_steps": 1, "enable_checkpointing": True}
    record = logged(config, tmp_path, best, LearningRateMonitor(), **options)
    trained = [row for row in rows if "loss" in row]
    assert len(record.steps) == len(trained) == 12
    for ours, theirs in zip(record.steps, trained, strict=True):
        assert {key: theirs[key] for key in ours} == pytest.approx(ours, abs=1e-6)
    validated = [row for row in rows if "val_loss" in row]
    assert len(validated) == 2
    for ours, theirs in zip(record.validations, validated, strict=True):
        assert {key: theirs[key] for key in ours} == pytest.approx(ours, abs=1e-6)
    table = pd.read_csv(next((tmp_path / "logs").rglob("metrics.csv")))
    assert table["loss"].dropna().tolist() == pytest.approx([row["loss"] for row in trained], abs=1e-6)
    rates = table.set_index("step").filter(regex="^lr").dropna().iloc[:, 0]
    assert rates[~rates.index.duplicated()].tolist() == pytest.approx([row["lr"] for row in trained])
    scores = {row["step"]: row["val_loss"] for row in validated}
    assert f"step={min(scores, key=lambda step: scores[step])}.ckpt" in best.best_model_path
    # A checkpoint of Lightning knows its configuration.
    loaded = GeneMambaModule.load_from_checkpoint(best.best_model_path)
    assert loaded.config.model == config.model
    (scored,) = trainer(tmp_path).validate(loaded, datamodule=CellDataModule(config))
    assert scored["val_loss"] == pytest.approx(min(scores.values()), abs=1e-6)


# At the end of an epoch, and within one.
@pytest.mark.parametrize(("step", "workers"), [(5, 0), (7, 0), (7, 2)])
def test_a_checkpoint_of_lightning_continues_the_stream(
    config: Config, tmp_path: Path, step: int, workers: int
) -> None:
    config.data.workers = workers
    whole = logged(config, tmp_path)
    saved = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=step, save_top_k=-1)
    logged(config, tmp_path, saved, max_steps=step + 1, enable_checkpointing=True)
    record = Record()
    # A module of another seed: what counts is in the checkpoint.
    other = copy.deepcopy(config)
    other.run.seed = 9
    (checkpoint,) = (tmp_path / "saved").glob(f"*-step={step}.ckpt")
    trainer(tmp_path, record).fit(GeneMambaModule(other), datamodule=CellDataModule(config), ckpt_path=checkpoint)
    rest = [row["loss"] for row in whole.steps[step:]]
    assert [row["loss"] for row in record.steps] == pytest.approx(rest, abs=1e-6)
    assert record.validations[-1] == pytest.approx(whole.validations[-1], abs=1e-6)


def test_a_checkpoint_of_another_store_is_refused(config: Config, atlas: Atlas, tmp_path: Path) -> None:
    saved = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=2)
    logged(config, tmp_path, saved, max_steps=2, enable_checkpointing=True)
    config.data.store = str(tmp_path / "other.zarr")
    splits = SplitOptions(by="cell", validation=0.2)
    medians = atlas.store.parent / "medians.zarr"
    make_store(atlas.files[:1], medians, tmp_path / "other.zarr", top_k=48, splits=splits, say=lambda line: None)
    with pytest.raises(DataError, match=r"means other cells here:\n  store: "):
        trainer(tmp_path).fit(
            GeneMambaModule(config), datamodule=CellDataModule(config), ckpt_path=saved.best_model_path
        )


def test_the_trainer_accumulates_steps(config: Config, tmp_path: Path) -> None:
    module = GeneMambaModule(config)
    trainer(tmp_path, max_steps=1, accumulate_grad_batches=2).fit(module, datamodule=CellDataModule(config))
    # By hand: the mean of the losses of two steps.
    expected = GeneMambaModule(config)
    data = CellDataModule(config)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, barebones=True)
    data.setup("fit")
    stream = iter(data.train_dataloader())
    for _ in range(2):
        for batch in (next(stream), next(stream)):
            lang, pathway = loss_sums(expected.model, batch, config.objective)
            info = batch.info
            (lang / info.n_targets + config.objective.gamma * pathway / info.n_pairs).div(2).backward()
    torch.nn.utils.clip_grad_norm_(expected.model.parameters(), config.optim.clip)
    optimizer = build_optimizer(expected.model, config.optim)
    for group in optimizer.param_groups:
        group["lr"] = config.optim.lr / config.optim.warmup_steps
    optimizer.step()
    for name, value in expected.model.state_dict().items():
        assert torch.allclose(module.model.state_dict()[name], value, atol=1e-6), name


def test_early_stopping(config: Config, tmp_path: Path) -> None:
    never = EarlyStopping(monitor="val_loss", patience=1, min_delta=100.0)
    record = logged(config, tmp_path, never, max_steps=100)
    assert [row["step"] for row in record.validations] == [5, 10]
    assert len(record.steps) == 10


def test_clipping_by_the_trainer(config: Config, tmp_path: Path) -> None:
    """The Trainer's own `gradient_clip_val` comes before `optim.clip`."""
    plain, by_trainer = GeneMambaModule(config), GeneMambaModule(config)
    trainer(tmp_path, max_steps=2).fit(plain, datamodule=CellDataModule(config))
    config.optim.clip = 1e-9
    trainer(tmp_path, max_steps=2, gradient_clip_val=1.0).fit(by_trainer, datamodule=CellDataModule(config))
    # The norm is summed in another order.
    torch.testing.assert_close(by_trainer.model.state_dict(), plain.model.state_dict(), rtol=1e-5, atol=1e-7)


def test_predictions_are_embeddings_with_the_names_of_cells(config: Config, atlas: Atlas, tmp_path: Path) -> None:
    module = GeneMambaModule(config)
    predictions = trainer(tmp_path).predict(module, datamodule=CellDataModule(config))
    assert predictions is not None
    names = [(name, int(row)) for part in predictions for name, row in zip(part["data_set"], part["row"], strict=True)]
    assert names == [(name, row) for name, n in (("first", 150), ("second", 41)) for row in range(n)]
    assert [name for part in predictions for name in part["cell_id"]] == [f"cell {row}" for _, row in names]
    embeddings = np.concatenate([part["embedding"] for part in predictions])
    splits = [split for part in predictions for split in part["split"]]
    reader = StoreReader(atlas.store)
    blocks = reader.read(range(sum(reader.manifest.n_blocks)))
    assert splits == [("train", "validation", "test")[split] for block in blocks for split in block.split]
    cells = [block.tokens[a:b] for block in blocks for a, b in zip(block.indptr[:-1], block.indptr[1:], strict=True)]
    module.model.eval()
    with torch.no_grad():
        for number in range(0, len(cells), 17):
            tokens = torch.from_numpy(cells[number].astype(np.int64))[None]
            alone = module.model(tokens, torch.ones_like(tokens))[0].mean(0)
            assert np.abs(alone.numpy() - embeddings[number]).max() < 1e-6


def test_a_schedule_shorter_than_its_warm_up_is_refused(config: Config, tmp_path: Path) -> None:
    config.optim.schedule_steps = None
    with pytest.raises(ConfigError, match=r"optim.warmup_steps=5: is longer than the 3 steps of the Trainer"):
        logged(config, tmp_path, max_steps=3)


def test_an_epoch_that_would_end_within_a_step_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limit_train_batches=3: .* has 2 micro-batches: choose a multiple"):
        logged(config, tmp_path, limit_train_batches=3)
    record = logged(config, tmp_path, limit_train_batches=6)
    assert [row["step"] for row in record.validations] == [3, 6, 9, 12]


def test_a_checkpoint_with_another_order_is_refused(config: Config, tmp_path: Path) -> None:
    saved = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=2)
    logged(config, tmp_path, saved, max_steps=2, enable_checkpointing=True)
    for change, message in (
        ({"micro_rows": 4}, "micro-batches of a rank in a step: 2 in the checkpoint, 1 now"),
        ({"group_cells": 8}, "data.group_cells: 16 in the checkpoint, 8 now"),
        ({"pool_blocks": 3}, "data.pool_blocks: 2 in the checkpoint, 3 now"),
    ):
        other = copy.deepcopy(config)
        for key, value in change.items():
            setattr(other.data, key, value)
        with pytest.raises(DataError, match=message):
            trainer(tmp_path).fit(
                GeneMambaModule(other), datamodule=CellDataModule(other), ckpt_path=saved.best_model_path
            )


class SaveWithinAStep(L.Callback):
    """Writes a checkpoint after the first micro-batch of the second step."""

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 2:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/within.ckpt")


def test_a_checkpoint_within_a_step_is_refused(config: Config, tmp_path: Path) -> None:
    logged(config, tmp_path, SaveWithinAStep(), max_steps=3)
    with pytest.raises(DataError, match=r"written 1 micro-batches into a step: continue from one .* at the end"):
        trainer(tmp_path).fit(
            GeneMambaModule(config), datamodule=CellDataModule(config), ckpt_path=tmp_path / "within.ckpt"
        )


def test_the_schedule_is_that_of_the_first_trainer(config: Config, tmp_path: Path) -> None:
    """As in `gm-train fit`, a longer training continues at the final rate; and the user's configuration stays open."""
    config.optim.schedule_steps = None
    saved = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=6)
    logged(config, tmp_path, saved, max_steps=6, enable_checkpointing=True)
    assert config.optim.schedule_steps is None
    longer, module = trainer(tmp_path, max_steps=12), GeneMambaModule(config)
    longer.fit(module, datamodule=CellDataModule(config), ckpt_path=saved.best_model_path)
    assert longer.optimizers[0].param_groups[0]["lr"] == pytest.approx(config.optim.lr * config.optim.min_lr_ratio)


def test_a_trainer_and_a_data_module_may_be_used_again(config: Config, tmp_path: Path) -> None:
    data, record = CellDataModule(config), Record()
    one = trainer(tmp_path, record, max_steps=3)
    one.fit(GeneMambaModule(config), datamodule=data)
    again = Record()
    trainer(tmp_path, again, max_steps=3).fit(GeneMambaModule(config), datamodule=data)
    assert again.steps == record.steps
    one.fit_loop.epoch_loop.max_steps = 5
    one.fit(GeneMambaModule(config), datamodule=CellDataModule(config))
    assert one.accumulate_grad_batches == 2


def test_a_strategy_that_does_not_sum_gradients_is_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy FSDPStrategy: this module does not support it"):
        _refuse_other_strategies(SimpleNamespace(strategy=FSDPStrategy(), world_size=2))
    mesh = {"data_parallel": SimpleNamespace(size=lambda: 1)}
    wrong = ModelParallelStrategy()
    wrong._device_mesh = mesh
    with pytest.raises(ConfigError, match=r"without summing .*data_parallel_size=2, tensor_parallel_size=1"):
        _refuse_other_strategies(SimpleNamespace(strategy=wrong, world_size=2))


def test_it_begins_with_the_weights_of_a_checkpoint(config: Config, tmp_path: Path) -> None:
    fit(copy.deepcopy(config))
    config.model.init_from = str(tmp_path / "run")
    trained, module = load_model(tmp_path / "run")[0], GeneMambaModule(config)
    assert all(torch.equal(value, module.model.state_dict()[name]) for name, value in trained.state_dict().items())


def test_the_trainers_own_precision_is_used(config: Config, tmp_path: Path) -> None:
    record, exact = logged(config, tmp_path, precision="bf16-mixed", max_steps=2), logged(config, tmp_path, max_steps=2)
    difference = abs(record.steps[0]["loss"] - exact.steps[0]["loss"])
    assert 1e-6 < difference < 0.05

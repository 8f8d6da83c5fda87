"""Train with a Lightning Trainer of one's own: `python -m tests.support.stock_run OUT.json STRATEGY WORD...`.

Lightning starts the other ranks by running the same command again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from gm_train.config.load import load_config
from gm_train.loading.datamodule import CellDataModule
from gm_train.train.module import GeneMambaModule


class Record(L.Callback):
    """Collects what is logged: the losses of each optimizer step, and the validations by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._step = trainer.global_step  # above 0 after a checkpoint

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            metrics = trainer.callback_metrics
            keys = ("loss", "l_lang", "l_pathway", "grad_norm")
            self.steps.append({key: float(metrics[key]) for key in keys})

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            keys = ("val_loss", "val_l_lang", "val_l_pathway")
            row = {key: float(trainer.callback_metrics[key]) for key in keys}
            self.validations.append({"step": trainer.global_step, **row})


def trainer_of(strategy: str, max_steps: int, *callbacks: L.Callback) -> L.Trainer:
    fsdp2 = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return L.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=2,
        strategy=fsdp2 if strategy == "fsdp2" else strategy,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


def main(out: Path, strategy: str, words: list[str]) -> None:
    torch.set_num_threads(1)
    config = load_config(*words)
    record, folder = Record(), out.parent / "lightning"
    # Trained in two starts, the second one from a checkpoint in the middle of an epoch.
    saved = ModelCheckpoint(dirpath=folder, filename="first", every_n_train_steps=7)
    first = trainer_of(strategy, 7, record, saved)
    first.fit(GeneMambaModule(config), datamodule=CellDataModule(config))
    module, data = GeneMambaModule(config), CellDataModule(config)
    trainer = trainer_of(strategy, config.trainer.max_steps, record)
    trainer.fit(module, datamodule=data, ckpt_path=folder / "first.ckpt")
    predictions = trainer.predict(module, datamodule=data)
    assert predictions is not None
    cells = [
        [name, int(row), *map(float, embedding[:3])]
        for part in predictions
        for name, row, embedding in zip(part["data_set"], part["row"], part["embedding"], strict=True)
    ]
    content = {"steps": record.steps, "validations": record.validations, "cells": cells}
    out.with_suffix(f".{trainer.global_rank}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])

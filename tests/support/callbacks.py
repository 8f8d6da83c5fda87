"""Callbacks that configurations of tests name."""

import json
from pathlib import Path
from typing import Any

import lightning as L


class Diary(L.Callback):
    """Writes its calls to a file, one JSON array a line: the hook, `global_step`, and the loss or validation loss."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def _write(self, hook: str, trainer: L.Trainer, *more: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([hook, trainer.global_step, *more]) + "\n")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._write("start", trainer)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._write("before", trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write("after", trainer, batch_idx, float(trainer.callback_metrics["loss"]))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._write("validated", trainer, float(trainer.callback_metrics["val_loss"]))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._write("end", trainer)


class StopOnRank(L.Callback):
    """Asks one rank, and only that one, to stop after a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            trainer.should_stop = True


class FailOnRank(L.Callback):
    """Fails on one rank, and only on that one, after a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            raise RuntimeError("no more")


class Failing(L.Callback):
    """Fails in the hook that it is told."""

    def __init__(self, hook: str) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("no disk for the diary")

        setattr(self, hook, fail)

"""The user's Lightning callbacks in `gm-train fit`, called once a step although a Lightning batch is a micro-batch."""

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch

from data_shards.errors import DataError
from gm_train.config.check import ConfigError, callback_entry
from gm_train.objective.batches import MicroBatch
from gm_train.ranks.ranks import Ranks

log = logging.getLogger(__name__)


#: Hooks that `gm-train fit` never calls: they belong to micro-batches or to Lightning's own loops.
_NEVER = (
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad",
    "on_validation_batch_start", "on_validation_batch_end", "on_save_checkpoint",
)  # fmt: skip


def load_callbacks(entries: Sequence[Any], ranks: Ranks) -> list[L.Callback]:
    """Make the callbacks that `trainer.callbacks` names; all ranks call this together.

    Args:
        entries: `package.module:Class`, or a mapping of that to keyword arguments.
        ranks: this process among the others.

    Raises:
        ConfigError: on some rank, an entry cannot be imported, is no Lightning callback, or refuses its arguments.
    """
    callbacks, problems = [], []
    for entry in entries:
        target, arguments = callback_entry(entry)
        module, _, name = target.partition(":")
        try:
            callback = getattr(importlib.import_module(module), name)(**arguments)
        except Exception as error:
            problems.append(f"trainer.callbacks: {target}: {type(error).__name__}: {error}")
            continue
        if not isinstance(callback, L.Callback):
            problems.append(f"trainer.callbacks: {target}: is not a lightning.Callback")
            continue
        never = [hook for hook in _NEVER if getattr(type(callback), hook) is not getattr(L.Callback, hook)]
        if never and ranks.is_first:
            log.warning("trainer.callbacks: %s: its %s will not be called by gm-train fit", target, ", ".join(never))
        callbacks.append(callback)
    if found := [problem for of_rank in ranks.gather(problems) for problem in of_rank]:
        raise ConfigError(list(dict.fromkeys(found)), everywhere=True)
    return callbacks


class StepCallbacks(L.Callback):
    """Calls callbacks as a Trainer does whose batch is a whole step.

    `trainer.global_step` counts the run's steps, and `trainer.callback_metrics` holds the columns of `metrics.jsonl`.
    If a callback of any rank sets `trainer.should_stop`, all ranks stop.

    Args:
        callbacks: the callbacks, in the order in which they are called.
        ranks: this process among the others.
        step: optimizer steps that the run has done already.
    """

    def __init__(self, callbacks: Sequence[L.Callback], ranks: Ranks, step: int) -> None:
        self._callbacks, self._ranks, self._step = callbacks, ranks, step
        self._wants_stop = False

    @property
    def are_used(self) -> bool:
        """Whether there are any callbacks."""
        return bool(self._callbacks)

    def measured(self, trainer: L.Trainer, row: dict[str, float]) -> None:
        """Show the numbers of a row of `metrics.jsonl` to the callbacks."""
        if self._callbacks:
            trainer._logger_connector._callback_metrics.update({key: torch.tensor(row[key]) for key in row})

    def validated(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Call the hooks of a validation; its losses have been `measured`."""
        for hook in (
            "on_validation_start",
            "on_validation_epoch_start",
            "on_validation_epoch_end",
            "on_validation_end",
        ):
            self._call(hook, trainer, module)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show the step that the run starts from."""
        self._count(trainer)
        self._call("on_train_start", trainer, module)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Before the first micro-batch of a step, call the callbacks; the batch's number is that of the step."""
        if batch.first:
            self._call("on_train_batch_start", trainer, module, batch, self._step)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        """After the last micro-batch of a step, call the callbacks, and let all ranks stop together."""
        if not batch.last:
            return
        self._step += 1
        self._count(trainer)
        self._call("on_train_batch_end", trainer, module, outputs, batch, self._step - 1)
        if self._callbacks:
            trainer.should_stop = any(self._ranks.gather(trainer.should_stop or self._wants_stop))

    def _count(self, trainer: L.Trainer) -> None:
        # Lightning counts only steps of its own wrapper around the optimizer, which `Steps` does not use.
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.total.ready = progress.total.completed = self._step

    def _call(self, hook: str, trainer: L.Trainer, module: L.LightningModule, *arguments: Any, **named: Any) -> None:
        # Lightning would stop this rank at once, within a step: the wish waits for the end of the step.
        before = trainer.should_stop
        for callback in self._callbacks:
            try:
                getattr(callback, hook)(trainer, module, *arguments, **named)
            except DataError:
                raise
            except Exception as error:
                if hook == "on_exception":  # what is being raised matters more
                    log.error("a callback failed in on_exception", exc_info=error)
                    continue
                name = f"{type(callback).__module__}:{type(callback).__qualname__}"
                log.error("%s.%s failed", name, hook, exc_info=error)
                raise DataError(
                    f"trainer.callbacks: {name}: its {hook} raised {type(error).__name__}: {error}; the run resumes "
                    "from its last checkpoint once the callback is fixed or left out"
                ) from error
            self._wants_stop |= trainer.should_stop and not before
            trainer.should_stop = before


def _forward(hook: str) -> Callable[..., None]:
    def call(self: StepCallbacks, trainer: L.Trainer, module: L.LightningModule, *given: Any, **named: Any) -> None:
        self._call(hook, trainer, module, *given, **named)

    return call


# The hooks of a whole training; those of batches are above, and nothing else is called in `gm-train fit`.
for _hook in (
    "setup", "teardown", "on_fit_start", "on_fit_end", "on_train_end", "on_train_epoch_start", "on_train_epoch_end",
    "on_exception",
):  # fmt: skip
    setattr(StepCallbacks, _hook, _forward(_hook))

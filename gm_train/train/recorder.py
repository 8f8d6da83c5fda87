"""The work between two optimizer steps: record, validate, save, recover from bad numbers, leave when asked."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L

from data_shards.errors import DataError
from data_shards.store.quarantine import DamagedChunk
from data_shards.workers.progress import Progress
from gm_train.checkpoint.find import Checkpoint, latest_whole, prune, refuse_other_form
from gm_train.checkpoint.save import About, save_checkpoint
from gm_train.config.schema import DataConfig
from gm_train.loading.position import Position
from gm_train.loading.rank_batches import RankBatches
from gm_train.objective.batches import MicroBatch
from gm_train.ranks.ranks import Ranks
from gm_train.ranks.signals import Leaving
from gm_train.run.lock import RunLock
from gm_train.run.loggers import LoggerThread
from gm_train.run.records import METRICS, QUARANTINE, SKIPPED, append_row, read_rows, sync_rows
from gm_train.train.callbacks import StepCallbacks
from gm_train.train.columns import COLUMNS, FinishedStep
from gm_train.train.patience import Patience
from gm_train.train.step_module import StepModule, StepResult
from gm_train.train.validation import Validation, validate

log = logging.getLogger(__name__)

_BAD_WINDOW = 1000  # steps


class Recorder(L.Callback):
    """Keeps the run directory up to date during training.

    After each optimizer step, in this order: the position advances, the step is recorded, held-out cells are
    validated, a checkpoint is committed. A step whose loss or gradient is not finite changes no weight. Too many of
    them in a window load the weights of the last checkpoint before them again; the position still moves past the bad
    steps. If any rank gets a signal to leave, training ends at the next step boundary, with a checkpoint.

    All ranks decide alike, from numbers that they have exchanged. Only rank 0 writes the records.

    Args:
        directory: the run directory.
        position: the run's position; advanced only here.
        batches: of this rank.
        about: what checkpoints hold besides the state.
        checkpoint: the one that the run resumes from, or None.
        leaving: knows whether a signal to leave has arrived.
        ranks: this process among the others.
        lock: the lock of the run directory, on rank 0; None on the others.
        loggers: get each row of `metrics.jsonl`, on rank 0; none on the others.
        callbacks: the user's; they are shown each row, and called after each validation.
        patience: knows the validations so far.
    """

    def __init__(
        self,
        directory: Path,
        position: Position,
        batches: RankBatches,
        about: About,
        checkpoint: Checkpoint | None,
        leaving: Leaving,
        ranks: Ranks,
        lock: RunLock | None,
        loggers: Sequence[LoggerThread],
        callbacks: StepCallbacks,
        patience: Patience,
    ) -> None:
        self._loggers, self._callbacks, self._patience = loggers, callbacks, patience
        self.directory = directory
        self.position = position
        self._batches = batches
        self._about, self._leaving, self._ranks, self._lock = about, leaving, ranks, lock
        self._start = checkpoint
        self._saved_step = position.step
        self._has_stepped = checkpoint is not None
        self._validated: tuple[int, Validation] | None = None
        events = ranks.from_first(lambda: read_rows(directory / SKIPPED))
        rollbacks = [event["step"] for event in events if event["event"] == "rollback"]
        self._rollbacks = len(rollbacks)
        self._bad_steps = [event["step"] for event in events if event["step"] > max(rollbacks, default=0)]
        # Chunks found damaged stay damaged, whichever step a run resumes from.
        rows = ranks.from_first(lambda: read_rows(directory / QUARANTINE))
        self._damaged = {(row["data_set"], row["shard"], row["chunk"]) for row in rows}
        self._save_seconds = 0.0
        self._bar: Progress | None = None
        self._clock = time.perf_counter()
        self._waited_s = 0.0

    # Lightning's hooks -----------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Refuse more damaged chunks than allowed, before the loader reads any."""
        assert isinstance(module, StepModule)
        self._quarantine((), module.config.data)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Load the checkpoint that the run resumes from, and start the progress bar."""
        assert isinstance(module, StepModule)
        if self._start is not None:
            module.steps.load(self._start, module.model, module.optimizer)
        if self._ranks.is_first:
            total = module.config.trainer.max_steps
            self._bar = Progress(
                total=total,
                initial=self.position.step,
                desc="training",
                unit=" steps",
                at_once=True,
                dynamic_ncols=True,
            )
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: MicroBatch, batch_idx: int
    ) -> None:
        """After the last micro-batch of a step: record, validate, save, leave.

        Args:
            trainer: told to stop when the run leaves.
            module: holds the result of the step.
            outputs: unused.
            batch: the micro-batch that has just ended.
            batch_idx: unused.
        """
        if not batch.last:
            return
        assert isinstance(module, StepModule)
        result = module.last_result
        seconds = time.perf_counter() - self._clock
        waited_s = self._batches.waited_s
        loader_s, self._waited_s = waited_s - self._waited_s, waited_s
        self._advance(result)
        self._record(trainer, result, seconds, loader_s)
        self._quarantine(result.info.damaged, self._batches.data)
        every = module.config.trainer.validate_every_steps
        if result.finite:
            self._has_stepped = True
        # Before the validation: it must score the weights that training continues with.
        is_due = self._rolled_back(module) if not result.finite else False
        is_due |= result.finite and self.position.step % module.config.checkpoint.every_steps == 0
        is_due |= every > 0 and self.position.step % every == 0 and self._validate(trainer, module)
        if is_due:
            self._save(module)
        trainer.should_stop |= self._patience.is_over
        # Ignored after the last step: a finished run must not be started again.
        if self.position.step < module.config.trainer.max_steps and self._leaving.agree(self._ranks) is not None:
            trainer.should_stop = True
        self._clock = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save the last step."""
        assert isinstance(module, StepModule)
        self._save(module)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Close the progress bar: Lightning skips `teardown` here, and the message would be printed into the bar."""
        if self._bar is not None:
            self._bar.close()

    # Steps ------------------------------------------------------------------------------------------------------------

    def _advance(self, result: StepResult) -> None:
        self.position.step += 1
        self.position.cells += result.info.n_cells
        self.position.lanes.update(result.info.lanes)

    def _record(self, trainer: L.Trainer, result: StepResult, seconds: float, loader_s: float) -> None:
        finished = FinishedStep(self.position, result, seconds, loader_s)
        row = {name: value(finished) for name, value in COLUMNS.items()}
        if self._about.classes is not None:
            del row["l_lang"], row["l_pathway"]  # the loss has one part
        self._callbacks.measured(trainer, {key: row[key] for key in row if isinstance(row[key], int | float)})
        if not self._ranks.is_first:
            return
        if not result.finite:
            keys = ("step", "position", "loss", "grad_norm", "sample_hash", "time")
            self._append(SKIPPED, {"event": "skipped", **{key: _json(row[key]) for key in keys}})
        self._append_metrics(row)
        self._show(result, row["tokens_per_s"])

    def _quarantine(self, chunks: tuple[DamagedChunk, ...], data: DataConfig) -> None:
        """Record damaged chunks of tokens.

        Raises:
            DataError: the run has found more than `data.max_damaged_chunks`.
        """
        for chunk in sorted(set(chunks)):
            if (key := (chunk.data_set, chunk.shard, chunk.chunk)) in self._damaged:
                continue
            self._damaged.add(key)
            if self._ranks.is_first:
                log.warning("%s: %s is damaged: its cells are skipped and add no loss", data.store, chunk)
                self._append(QUARANTINE, {"step": self.position.step, **chunk._asdict(), "time": time.time()})
        if len(self._damaged) > data.max_damaged_chunks:
            raise self._ranks.in_one_voice(
                DataError(
                    f"{data.store}: {len(self._damaged)} chunks of tokens are damaged, more than "
                    f"data.max_damaged_chunks={data.max_damaged_chunks}; {self.directory / QUARANTINE} names them: "
                    "restore an undamaged copy of the store and delete that file, or raise data.max_damaged_chunks"
                )
            )

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if self._lock is not None:
            self._lock.check()
        append_row(self.directory / name, row)

    def _append_metrics(self, row: dict[str, Any]) -> None:
        content = {key: _json(value) for key, value in row.items()}
        self._append(METRICS, content)
        for logger in self._loggers:
            logger.send(content)

    def _show(self, result: StepResult, tokens_per_s: float) -> None:
        assert self._bar is not None
        scores = {} if self._validated is None else self._validated[1].scores
        val = f"{scores['val_loss']:.3f}" if scores else "-"
        if self._about.classes is not None:
            text = f"loss {result.loss:.3f}"
            val += f", accuracy {scores['val_accuracy']:.1%}" if scores else ""
        else:
            text = f"loss {result.loss:.3f}, L_lang {result.l_lang:.3f}, L_pathway {result.l_pathway:.3f}"
        text += f", {tokens_per_s:,.0f} tokens/s, grad {result.grad_norm:.2f}, val {val}"
        if self._save_seconds:
            text += f", last save {self._save_seconds:.2f} s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def _validate(self, trainer: L.Trainer, module: StepModule) -> bool:
        """Validate. Returns whether the run has a patience and this is its best validation."""
        batches = self._ranks.together(self._batches.validation_batches)
        if not batches:
            return False
        # All ranks read the same batches, but a chunk may be unreadable for one rank alone.
        damaged = self._ranks.gather(batches[0].info.damaged)
        self._quarantine(tuple(chunk for chunks in damaged for chunk in chunks), module.config.data)
        validation = validate(module.model, batches, module.config, self._ranks)
        self._validated = self.position.step, validation
        scores = validation.scores
        row = {"step": self.position.step, "position": self.position.cells, **scores, "time": time.time()}
        if self._ranks.is_first:
            self._append_metrics(row)
        self._callbacks.measured(trainer, scores)
        self._callbacks.validated(trainer, module)
        return self._patience.add(scores["val_loss"]) and self._patience.limit > 0

    def _save(self, module: StepModule) -> None:
        # Not before the first step: saving creates the optimizer's state, which would change later steps.
        if self.position.step == self._saved_step or not self._has_stepped:
            return
        begun = time.perf_counter()
        if self._ranks.is_first:
            for name in (METRICS, SKIPPED, QUARANTINE):
                sync_rows(self.directory / name)
        # Each rank knows only the positions of its own lanes.
        for lanes in self._ranks.gather({lane: self.position.lanes[lane] for lane in module.last_result.info.lanes}):
            self.position.lanes.update(lanes)
        steps, model, optimizer = module.steps, module.model, module.optimizer
        if not all(self._ranks.gather(steps.is_finite(model))):
            raise self._ranks.in_one_voice(
                DataError(
                    f"{self.directory}: at step {self.position.step:,} the weights are not finite, so they are not "
                    "saved; earlier checkpoints, if any, are whole. Train with a lower optim.lr in another run.dir"
                )
            )
        val_loss, about = None, self._about
        if self._validated is not None and self._validated[0] == self.position.step:
            scored = self._validated[1]
            val_loss = _json(scored.scores["val_loss"])
            if about.classes is not None:
                about = replace(about, classes=about.classes.with_calibration(scored.calibration))
        folder = self.directory / "checkpoints"
        save_checkpoint(
            folder,
            lambda state: steps.save(state, model, optimizer),
            steps.form,
            self.position,
            about,
            val_loss,
            self._ranks,
            self._lock,
        )
        self._saved_step = self.position.step
        self._save_seconds = time.perf_counter() - begun
        if self._ranks.is_first:
            prune(folder, module.config.checkpoint.keep_last, before=min(self._recent_bad(), default=None))

    # Bad numbers ------------------------------------------------------------------------------------------------------

    def _recent_bad(self) -> list[int]:
        return [step for step in self._bad_steps if step > self.position.step - _BAD_WINDOW]

    def _rolled_back(self, module: StepModule) -> bool:
        """Count a step that is not finite. Returns whether the run went back to earlier weights, and must save them.

        Saved, because a resume must not repeat the bad steps.
        """
        trainer = module.config.trainer
        step = self.position.step
        self._bad_steps = [*self._recent_bad(), step]
        if self._ranks.is_first:
            log.warning("step %d: loss or gradient is not finite; the step changes no weight", step)
        if len(self._bad_steps) <= trainer.max_bad_steps:
            return False
        count = f"{len(self._bad_steps)} of the last {_BAD_WINDOW:,} steps were not finite"
        first_bad = self._bad_steps[0]
        checkpoint = self._ranks.from_first(lambda: latest_whole(self.directory / "checkpoints", before=first_bad))
        if checkpoint is None or self._rollbacks >= trainer.max_rollbacks:
            why = "there is no checkpoint to go back to" if checkpoint is None else f"after {self._rollbacks} rollbacks"
            raise self._ranks.in_one_voice(
                DataError(
                    f"{self.directory}: {count}, {why}: training stops. {SKIPPED} names the steps; try a lower "
                    "optim.lr or a longer optim.warmup_steps in another run.dir"
                )
            )
        # That part of the run may have had another strategy or number of ranks.
        self._ranks.from_first(lambda: refuse_other_form(checkpoint, module.steps.form, self._ranks.world_size))
        self._rollbacks += 1
        self._bad_steps = []
        module.steps.load(checkpoint, module.model, module.optimizer)
        if self._ranks.is_first:
            log.warning("%s: loaded the weights of step %d again; the data continues from here", count, checkpoint.step)
            row = {"event": "rollback", "step": step, "to_step": checkpoint.step, "time": time.time()}
            self._append(SKIPPED, row)
        self._validated = None  # these are not the weights that were validated
        return True


def _json(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

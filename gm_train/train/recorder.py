"""The work between two optimizer steps: record, validate, save, recover from bad numbers, leave when asked."""

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L

from data_shards.errors import DataError
from data_shards.store.quarantine import DamagedChunk
from data_shards.workers.progress import Progress
from gm_train.checkpoint.find import Checkpoint, prune
from gm_train.checkpoint.save import About, save_checkpoint
from gm_train.config.schema import DataConfig
from gm_train.loading.position import Position
from gm_train.loading.rank_batches import RankBatches
from gm_train.objective.batches import MicroBatch, StepInfo
from gm_train.ranks.ranks import Ranks
from gm_train.ranks.signals import Leaving
from gm_train.run.lock import RunLock
from gm_train.run.record_writer import RecordWriter
from gm_train.run.records import QUARANTINE, SKIPPED, read_rows
from gm_train.train.bad_steps import BadSteps
from gm_train.train.callbacks import StepCallbacks
from gm_train.train.columns import COLUMNS, EndedStep, FinishedStep
from gm_train.train.live_evaluation import LiveEvaluation, earlier_scores
from gm_train.train.patience import Patience
from gm_train.train.step_flops import StepFlops
from gm_train.train.step_module import StepModule, StepResult
from gm_train.train.validation import Validation, validate

log = logging.getLogger(__name__)


class Recorder(L.Callback):
    """Keeps the run directory up to date during training.

    After each optimizer step, in this order: the position advances, the step before is recorded, held-out cells are
    validated, the panel is scored, a checkpoint is committed. The result of a step is known during the next one, so
    that nothing waits for the device. Only where it is needed at once (a checkpoint, a validation, a panel, the last
    step, a callback of the user) is it waited for, and the step is recorded at its own end.

    A step whose loss or gradient is not finite changes no weight. Too many of them in a window load the weights of the
    last checkpoint before them again, one step later; the position still moves past the bad steps. If any rank gets a
    signal to leave, training ends at the next step boundary, with a checkpoint.

    All ranks decide alike, from numbers that they have exchanged. Only rank 0 writes the records.

    Args:
        directory: the run directory.
        position: the run's position; advanced only here.
        batches: of this rank.
        about: what checkpoints hold besides the state.
        checkpoint: the one that the run resumes from, or None.
        leaving: knows whether the ranks have agreed to leave.
        ranks: this process among the others.
        lock: the lock of the run directory, on rank 0; None on the others.
        writer: of the records, on rank 0; None on the others.
        callbacks: the user's; they are shown each row, and called after each validation.
        patience: knows the validations so far.
        live: scores the panel; None if the run has none.
        step_flops: counts the operations of a step.
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
        writer: RecordWriter | None,
        callbacks: StepCallbacks,
        patience: Patience,
        live: LiveEvaluation | None,
        step_flops: StepFlops,
    ) -> None:
        self._live, self._step_flops = live, step_flops
        self._panel_scores: Mapping[int, float] = {}
        if ranks.is_first:
            # Without a panel in this start, earlier scores still say which checkpoint is best.
            best = None if live is None else live.best
            self._panel_scores = earlier_scores(directory, position.step) if best is None else best.by_step
        self._writer, self._callbacks, self._patience = writer, callbacks, patience
        self.directory = directory
        self.position = position
        self._batches = batches
        self._about, self._leaving, self._ranks, self._lock = about, leaving, ranks, lock
        self._start = checkpoint
        self._saved_step = position.step
        self._has_stepped = checkpoint is not None
        self._validated: tuple[int, Validation] | None = None
        events = ranks.from_first(lambda: read_rows(directory / SKIPPED))
        self._bad_steps = BadSteps(directory, ranks, events)
        # Chunks found damaged stay damaged, whichever step a run resumes from.
        rows = ranks.from_first(lambda: read_rows(directory / QUARANTINE))
        self._damaged = {(row["data_set"], row["shard"], row["chunk"]) for row in rows}
        self._save_seconds = 0.0
        self._bar: Progress | None = None
        self._clock = time.perf_counter()
        self._waited_s = 0.0
        # The last step, while its result is not known.
        self._ended: EndedStep | None = None

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
            module: knows the result of the step before.
            outputs: unused.
            batch: the micro-batch that has just ended.
            batch_idx: unused.
        """
        if not batch.last:
            return
        assert isinstance(module, StepModule)
        self._advance(module.info)
        if module.finished is not None:
            self._record(trainer, module.finished)
        step, config = self.position.step, module.config
        goes_back = self._bad_steps.are_too_many(step, config.trainer.max_bad_steps)
        result = module.settle() if goes_back or self._must_know(module) else None
        seconds = time.perf_counter() - self._clock
        waited_s = self._batches.waited_s
        loader_s, self._waited_s = waited_s - self._waited_s, waited_s
        self._ended = EndedStep(replace(self.position), seconds, loader_s, time.time())
        if result is not None:
            self._record(trainer, result)
        self._quarantine(module.info.damaged, self._batches.data)
        if result is not None:
            # Before the validation: it must score the weights that training continues with.
            if goes_back:
                self._go_back(module)
            is_due = goes_back or (result.finite and step % config.checkpoint.every_steps == 0)
            is_due |= self._validates(module) and self._validate(trainer, module)
            if self._scores_panel():
                if self._leaving.agreed is not None:
                    self._save(module)  # first: a signal may leave no time for more
                is_due |= self._score_panel(trainer, module)
            if is_due:
                self._save(module)
            trainer.should_stop |= self._patience.is_over or self._leaving.agreed is not None
        self._clock = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save the last step."""
        assert isinstance(module, StepModule)
        self._save(module)
        if self._writer is not None:
            self._writer.flush()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Close the progress bar, and write what is known: Lightning skips `teardown` here.

        The message would be printed into the bar.
        """
        assert isinstance(module, StepModule)
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.give_up()
            # A bad step may be the reason. The other ranks may be gone, and a GPU may have failed.
            with contextlib.suppress(DataError, RuntimeError):
                result = module.own_result()
                if result is not None and not result.finite and self._ended is not None:
                    row = self._row(result, self._ended)
                    # This rank knows only its own part of the loss.
                    self._skipped(row if self._ranks.world_size == 1 else row | {"loss": None})

    # Steps ------------------------------------------------------------------------------------------------------------

    def _must_know(self, module: StepModule) -> bool:
        """Whether the result of the last step is needed before the next one."""
        step, config = self.position.step, module.config
        is_over = step >= config.trainer.max_steps or self._leaving.agreed is not None
        saves = step % config.checkpoint.every_steps == 0
        return is_over or saves or self._validates(module) or self._scores_panel() or self._callbacks.are_used

    def _validates(self, module: StepModule) -> bool:
        every = module.config.trainer.validate_every_steps
        return every > 0 and self.position.step % every == 0

    def _scores_panel(self) -> bool:
        return self._live is not None and self._live.is_due(self.position.step)

    def _advance(self, info: StepInfo) -> None:
        self.position.step += 1
        self.position.cells += info.n_cells
        self.position.lanes.update(info.lanes)

    def _record(self, trainer: L.Trainer, result: StepResult) -> None:
        """Record the step that `_ended`."""
        assert self._ended is not None
        row = self._row(result, self._ended)
        self._ended = None
        self._callbacks.measured(trainer, {key: row[key] for key in row if isinstance(row[key], int | float)})
        if result.finite:
            self._has_stepped = True
        else:
            self._bad_steps.add(row["step"])
        if self._writer is not None:
            if not result.finite:
                self._skipped(row)
            self._append_metrics(row)
            self._show(result, row["tokens_per_s"])

    def _row(self, result: StepResult, ended: EndedStep) -> dict[str, Any]:
        finished = FinishedStep(**vars(ended), result=result, flops=self._step_flops.of(result.info))
        row = {name: value(finished) for name, value in COLUMNS.items()}
        if self._about.classes is not None:
            del row["l_lang"], row["l_pathway"]  # the loss has one part
        return row

    def _skipped(self, row: dict[str, Any]) -> None:
        assert self._writer is not None
        keys = ("step", "position", "loss", "grad_norm", "sample_hash", "time")
        self._writer.append(SKIPPED, {"event": "skipped", **{key: _json(row[key]) for key in keys}})

    def _go_back(self, module: StepModule) -> None:
        row = self._bad_steps.go_back(module, self.position.step)
        if self._writer is not None:
            self._writer.append(SKIPPED, row)
        self._validated = None  # these are not the weights that were validated

    def _quarantine(self, chunks: tuple[DamagedChunk, ...], data: DataConfig) -> None:
        """Record damaged chunks of tokens.

        Raises:
            DataError: the run has found more than `data.max_damaged_chunks`.
        """
        for chunk in sorted(set(chunks)):
            if (key := (chunk.data_set, chunk.shard, chunk.chunk)) in self._damaged:
                continue
            self._damaged.add(key)
            if self._writer is not None:
                log.warning("%s: %s is damaged: its cells are skipped and add no loss", data.store, chunk)
                self._writer.append(QUARANTINE, {"step": self.position.step, **chunk._asdict(), "time": time.time()})
        if len(self._damaged) > data.max_damaged_chunks:
            raise self._ranks.in_one_voice(
                DataError(
                    f"{data.store}: {len(self._damaged)} chunks of tokens are damaged, more than "
                    f"data.max_damaged_chunks={data.max_damaged_chunks}; {self.directory / QUARANTINE} names them: "
                    "restore an undamaged copy of the store and delete that file, or raise data.max_damaged_chunks"
                )
            )

    def _append_metrics(self, row: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.append_metrics({key: _json(value) for key, value in row.items()})

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
        if self._writer is not None:
            self._writer.flush()  # a validation may take minutes
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
        if self._writer is not None:
            self._append_metrics(row)
        self._callbacks.measured(trainer, scores)
        self._callbacks.validated(trainer, module)
        return self._patience.add(scores["val_loss"]) and self._patience.limit > 0

    def _score_panel(self, trainer: L.Trainer, module: StepModule) -> bool:
        """Score the panel. Returns whether the score that decides is the best so far."""
        assert self._live is not None
        if self._writer is not None:
            self._writer.flush()
        scores, is_best = self._live.score(module.steps, module.model, self.position.step)
        if self._writer is not None:
            self._append_metrics(
                {"step": self.position.step, "position": self.position.cells, **scores, "time": time.time()}
            )
        self._callbacks.measured(trainer, scores)
        return is_best

    def _save(self, module: StepModule) -> None:
        # Not before the first step: saving creates the optimizer's state, which would change later steps.
        if self.position.step == self._saved_step or not self._has_stepped:
            return
        begun = time.perf_counter()
        if self._writer is not None:
            self._writer.sync()
        # Each rank knows only the positions of its own lanes.
        for lanes in self._ranks.gather({lane: self.position.lanes[lane] for lane in module.info.lanes}):
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
            before = self._bad_steps.first(self._saved_step)
            prune(folder, module.config.checkpoint.keep_last, before, self._panel_scores)


def _json(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

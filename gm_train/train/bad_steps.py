"""Steps whose loss or gradient is not finite: count them, and go back to earlier weights if there are too many."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from gm_train.checkpoint.find import latest_whole, refuse_other_form
from gm_train.ranks.ranks import Ranks
from gm_train.run.records import SKIPPED
from gm_train.train.step_module import StepModule

log = logging.getLogger(__name__)

_WINDOW = 1000  # steps


class BadSteps:
    """The bad steps of a run that no rollback has answered yet.

    Args:
        directory: the run directory.
        ranks: this process among the others.
        events: the rows of `skipped.jsonl` so far.
    """

    def __init__(self, directory: Path, ranks: Ranks, events: Sequence[dict[str, Any]]) -> None:
        self._directory, self._ranks = directory, ranks
        rollbacks = [event["step"] for event in events if event["event"] == "rollback"]
        self._rollbacks = len(rollbacks)
        self._steps = [event["step"] for event in events if event["step"] > max(rollbacks, default=0)]

    def add(self, step: int) -> None:
        """Count a bad step."""
        self._steps.append(step)
        if self._ranks.is_first:
            log.warning("step %d: loss or gradient is not finite; the step changes no weight", step)

    def first(self, step: int) -> int | None:
        """The first bad step of the last thousand before and at `step`; None if there is none."""
        return min(self._recent(step), default=None)

    def are_too_many(self, step: int, limit: int) -> bool:
        """Whether more than `limit` steps before `step` were bad.

        `step` itself does not count: without waiting for the device, its result is known one step later. So the same
        step goes back, whether or not something else made the run wait.
        """
        return len([bad for bad in self._recent(step) if bad < step]) > limit

    def go_back(self, module: StepModule, step: int) -> dict[str, Any]:
        """Load the weights of the newest whole checkpoint before the first bad step; all ranks call this together.

        Args:
            module: gets the weights and the state of the optimizer.
            step: the step that has just ended.

        Returns:
            The row for `skipped.jsonl`.

        Raises:
            DataError: there is no such checkpoint, or the run has gone back too often.
        """
        recent = self._recent(step)
        count = f"{len(recent)} of the last {_WINDOW:,} steps were not finite"
        folder = self._directory / "checkpoints"
        checkpoint = self._ranks.from_first(lambda: latest_whole(folder, before=recent[0]))
        if checkpoint is None or self._rollbacks >= module.config.trainer.max_rollbacks:
            why = "there is no checkpoint to go back to" if checkpoint is None else f"after {self._rollbacks} rollbacks"
            raise self._ranks.in_one_voice(
                DataError(
                    f"{self._directory}: {count}, {why}: training stops. {SKIPPED} names the steps; try a lower "
                    "optim.lr or a longer optim.warmup_steps in another run.dir"
                )
            )
        # That part of the run may have had another strategy or number of ranks.
        self._ranks.from_first(lambda: refuse_other_form(checkpoint, module.steps.form, self._ranks.world_size))
        self._rollbacks += 1
        self._steps = []
        module.steps.load(checkpoint, module.model, module.optimizer)
        if self._ranks.is_first:
            log.warning("%s: loaded the weights of step %d again; the data continues from here", count, checkpoint.step)
        return {"event": "rollback", "step": step, "to_step": checkpoint.step, "time": time.time()}

    def _recent(self, step: int) -> list[int]:
        return [bad for bad in self._steps if bad > step - _WINDOW]

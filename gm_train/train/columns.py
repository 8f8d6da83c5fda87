"""The columns of `metrics.jsonl`, one row per optimizer step. To add a column, list it here."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gm_train.loading.position import Position
from gm_train.train.step_module import StepResult


@dataclass(frozen=True)
class FinishedStep:
    """An optimizer step that has just ended.

    Attributes:
        position: the run's position after the step.
        result: losses, gradient norm and counts over all ranks.
        seconds: wall-clock time of the step, without validation and checkpoints.
        loader_s: seconds of it that rank 0 waited for its loader.
    """

    position: Position
    result: StepResult
    seconds: float
    loader_s: float


#: Name of each column, and the function that returns its value. JSON has no NaN: such numbers are written as null.
COLUMNS: dict[str, Callable[[FinishedStep], Any]] = {
    "step": lambda step: step.position.step,
    "position": lambda step: step.position.cells,
    "loss": lambda step: step.result.loss,
    "l_lang": lambda step: step.result.l_lang,
    "l_pathway": lambda step: step.result.l_pathway,
    "grad_norm": lambda step: step.result.grad_norm,
    "lr": lambda step: step.result.lr,
    "tokens_per_s": lambda step: step.result.info.n_tokens / step.seconds,
    "step_s": lambda step: step.seconds,
    "loader_s": lambda step: step.loader_s,
    "tokens": lambda step: step.result.info.n_tokens,
    "fill": lambda step: step.result.info.n_tokens / step.result.info.n_slots,
    "sample_hash": lambda step: f"{step.result.info.sample_hash:016x}",
    "time": lambda step: time.time(),
}

"""The columns of `metrics.jsonl`, one row per optimizer step. To add a column, list it here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gm_train.loading.position import Position
from gm_train.train.step_module import StepResult


@dataclass(frozen=True)
class EndedStep:
    """An optimizer step that has ended on rank 0; a GPU may still compute.

    Attributes:
        position: the run's position after the step.
        seconds: wall-clock time of rank 0's step, without validation and checkpoints.
        loader_s: seconds of it that rank 0 waited for its loader.
        time: when it ended, in seconds since 1970.
    """

    position: Position
    seconds: float
    loader_s: float
    time: float


@dataclass(frozen=True)
class FinishedStep(EndedStep):
    """An optimizer step whose result is known.

    Attributes:
        result: losses, gradient norm and counts over all ranks.
        flops: floating-point operations that the model needs for the step, over all ranks; None if they are not known.
    """

    result: StepResult
    flops: float | None


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
    "flops": lambda step: step.flops,
    "fill": lambda step: step.result.info.n_tokens / step.result.info.n_slots,
    "sample_hash": lambda step: f"{step.result.info.sample_hash:016x}",
    "time": lambda step: step.time,
}

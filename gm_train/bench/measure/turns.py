"""Alternation: every contender in a process of its own, each in turn for a few steps, until all have had enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm_train.bench.measure.process import BenchProcess, OutOfMemory

#: Steps of one contender before it is the next one's turn.
TURN = 2
#: Fewest timed steps that anything is reported from.
FEWEST_STEPS = 10

Say = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the steps of a contender, seconds."""

    median: float
    low: float
    high: float
    steps: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Raises ValueError for fewer than ten steps: too few to report."""
        if len(seconds) < FEWEST_STEPS:
            raise ValueError(f"{len(seconds)} timed steps are too few to report: at least {FEWEST_STEPS}")
        low, median, high = np.percentile(seconds, [25, 50, 75]).tolist()
        return cls(median, low, high, len(seconds))


def alternate(workers: Sequence[BenchProcess], steps: int, say: Say, turn: int = TURN) -> dict[str, list[Any] | None]:
    """Let every worker take timed steps, `turn` at a time in turn, so that the machine's drift meets all alike.

    Returns:
        What each step took, as the method `steps` of what the worker holds tells it, by the worker's name; None for one
        that ran out of memory, which drops out.
    """
    taken_by: dict[str, list[Any] | None] = {worker.name: [] for worker in workers}
    taken = 0
    while taken < steps:
        n = min(turn, steps - taken)
        for worker in workers:
            so_far = taken_by[worker.name]
            if so_far is None:
                continue
            say(f"{worker.name}: steps {taken + 1} to {taken + n} of {steps}")
            try:
                so_far += worker.call("steps", n)
            except OutOfMemory:
                taken_by[worker.name] = None
        taken += n
    return taken_by

"""Alternation: contenders, each in its own process, take turns of a few steps until all have done enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gm_train.bench.measure.process import BenchProcess, OutOfMemory

#: Steps of one contender before the next one's turn.
TURN = 2
#: Results from fewer timed steps are not reported.
FEWEST_STEPS = 10

#: Takes a progress line.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of the steps of a contender, in seconds or as rates."""

    median: float
    low: float
    high: float
    steps: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Summarize steps; raise ValueError for fewer than ten, which are too few to report."""
        if len(seconds) < FEWEST_STEPS:
            raise ValueError(f"{len(seconds)} timed steps are too few to report: at least {FEWEST_STEPS}")
        low, median, high = np.percentile(seconds, [25, 50, 75]).tolist()
        return cls(median, low, high, len(seconds))


def alternate(workers: Sequence[BenchProcess], steps: int, say: Say, turn: int = TURN) -> dict[str, list[Any] | None]:
    """Let the workers take timed steps in turn, so that drift of the machine affects all of them alike.

    Args:
        workers: their objects have a method `steps(n)` that returns a list of n measurements.
        steps: timed steps of each worker.
        say: takes progress lines.
        turn: steps before the next worker's turn.

    Returns:
        The measurements of each worker by its name; None if it ran out of memory, after which it is skipped.
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

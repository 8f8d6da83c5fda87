"""The exchange between the ranks in a step: one, issued before the backward pass and awaited after the update."""

import struct
from collections.abc import Callable, Sequence

from gm_train.objective.batches import N_NUMBERS, StepInfo
from gm_train.ranks.ranks import Ranks
from gm_train.ranks.signals import Leaving


class StepExchange:
    """What the ranks tell each other in a step: losses of the step before, counts of the next step, signals to leave.

    Args:
        ranks: this process among the others.
        leaving: knows whether a signal has arrived; learns here what all ranks agree on.
    """

    def __init__(self, ranks: Ranks, leaving: Leaving) -> None:
        self._ranks, self._leaving = ranks, leaving
        self._ahead: StepInfo | None = None
        self._wait: Callable[[], list[list[int]]]

    def begin(self, ahead: StepInfo | None, losses: Sequence[float]) -> None:
        """Send this rank's numbers; they travel in the background.

        Args:
            ahead: counts of the next step on this rank; None if there is no next step.
            losses: this rank's two parts of the losses of the step before.
        """
        self._ahead = ahead
        counts = [0] * N_NUMBERS if ahead is None else ahead.numbers()
        self._wait = self._ranks.gather_numbers([*_as_integers(losses), *counts, *self._leaving.noted()])

    def end(self) -> tuple[list[float], StepInfo | None]:
        """Wait for the numbers of all ranks.

        Returns:
            The losses of the step before and the counts of the next one, over all ranks.
        """
        everyone = self._wait()
        losses = _sum_floats([numbers[:2] for numbers in everyone])
        if self._ahead is None:
            # Signals are ignored after the last step: a finished run must not be started again.
            return losses, None
        if self._ranks.world_size == 1:
            self._leaving.agree(self._ranks)  # also a signal that came after `begin`
        else:
            noted = [numbers[2 + N_NUMBERS :] for numbers in everyone]
            self._leaving.agree_on([sum(of_ranks) for of_ranks in zip(*noted, strict=True)])
        counts = [numbers[2 : 2 + N_NUMBERS] for numbers in everyone]
        return losses, self._ahead.summed(counts, self._ranks)

    def at_once(self, losses: Sequence[float]) -> list[float]:
        """Sum losses over the ranks, as `end` does, in an exchange of their own."""
        return _sum_floats(self._ranks.gather_numbers(_as_integers(losses))())


def _as_integers(values: Sequence[float]) -> list[int]:
    """The bits of float64 numbers as int64."""
    return list(struct.unpack(f"{len(values)}q", struct.pack(f"{len(values)}d", *values)))


def _sum_floats(everyone: Sequence[Sequence[int]]) -> list[float]:
    """Sum the float64 numbers of all ranks, in the order of the ranks."""
    values = [struct.unpack(f"{len(bits)}d", struct.pack(f"{len(bits)}q", *bits)) for bits in everyone]
    return [sum(of_ranks) for of_ranks in zip(*values, strict=True)]

"""What ranks exchange in a step: sums over all of them, bit by bit the same whether exchanged ahead or at once."""

import math
import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from gm_train.objective.batches import StepInfo
from gm_train.ranks.launch_local import SIGNALS
from gm_train.ranks.ranks import Ranks
from gm_train.ranks.signals import Leaving
from gm_train.train.late_numbers import LateNumbers
from gm_train.train.step_exchange import StepExchange, _as_integers


class ThreeRanks(Ranks):
    """Rank 0 of three; the numbers of the others are given."""

    others: list[list[int]]

    def gather_numbers(self, numbers: Sequence[int]) -> Callable[[], list[list[int]]]:
        everyone = torch.tensor([list(numbers), *self.others]).tolist()
        return lambda: everyone


def three_ranks(others: list[list[int]]) -> Any:
    ranks = ThreeRanks(0, 3, 0, 3)
    object.__setattr__(ranks, "others", others)
    return ranks


def info(n: int) -> StepInfo:
    return StepInfo(n, 2 * n, 3 * n, 4 * n, 5 * n, 2**63 + n, {})


losses = st.lists(st.floats(width=32), min_size=2, max_size=2)


@given(losses, losses, losses)
def test_losses_are_summed_in_the_order_of_the_ranks(a: list[float], b: list[float], c: list[float]) -> None:
    others = [_as_integers(values) for values in (b, c)]
    at_once = StepExchange(three_ranks(others), Leaving()).at_once(a)
    none = [0] * len(info(1).numbers())
    exchange = StepExchange(three_ranks([[*bits, *none, 0, 0, 0] for bits in others]), Leaving())
    exchange.begin(None, a)
    ahead, counts = exchange.end()
    expected = [x + y + z for x, y, z in zip(a, b, c, strict=True)]
    for found in (at_once, ahead):
        assert all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(found, expected, strict=True))
    assert counts is None


def test_counts_and_signals_of_all_ranks() -> None:
    """A signal to one rank is agreed on by all; after the last step it is ignored."""
    zero = _as_integers([0.0, 0.0])
    asked = [int(number == signal.SIGUSR1) for number in SIGNALS]
    others = [[*zero, *info(10).numbers(), *asked], [*zero, *info(100).numbers(), 0, 0, 0]]
    for ahead, agreed in ((info(1), signal.SIGUSR1), (None, None)):
        leaving = Leaving()
        exchange = StepExchange(three_ranks(others), leaving)
        exchange.begin(ahead, [0.0, 0.0])
        counts = exchange.end()[1]
        assert leaving.agreed == agreed
        if ahead is not None:
            assert counts == StepInfo(111, 222, 333, 444, 555, (3 * 2**63 + 111) % 2**64, {})


def test_one_rank_notices_a_signal_until_the_end_of_the_step() -> None:
    leaving = Leaving()
    exchange = StepExchange(Ranks(), leaving)
    exchange.begin(info(1), [1.5, 2.5])
    leaving._note(signal.SIGTERM, None)
    assert exchange.end() == ([1.5, 2.5], info(1))
    assert leaving.agreed == signal.SIGTERM


def test_late_numbers_are_those_of_their_moment() -> None:
    values = torch.tensor([1.0, 2.0])
    late = LateNumbers(values)
    values += 1
    assert late.get() == [1.0, 2.0]

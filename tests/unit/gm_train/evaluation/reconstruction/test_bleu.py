"""BLEU against values computed by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_train.evaluation.reconstruction.bleu import bleu

SIX = [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(SIX, SIX)], 1.0),
        # 6 of 6 tokens, 3 of 5 pairs, 2 of 4 triples and 1 of 3 quadruples are right.
        ([(SIX, [1, 2, 3, 4, 6, 5])], (3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
        # The guess is too short by two: only the brevity penalty counts.
        ([(SIX, [1, 2, 3, 4])], math.exp(1 - 6 / 4)),
        # A guess that is too long has no penalty: 6 of 7, 5 of 6, 4 of 5, 3 of 4.
        ([(SIX, [*SIX, 9])], (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25),
        # A token counts as often as it stands in the truth: 4 of 5, then 3 of 4, 2 of 3, 1 of 2.
        ([([1, 2, 1, 2], [1, 2, 1, 2, 1])], (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        # Counts are added up over the corpus: (6 + 4) of 10, (3 + 3) of 8, (2 + 2) of 6, (1 + 1) of 4.
        ([(SIX, [1, 2, 3, 4, 6, 5]), ([7, 8, 9, 1], [7, 8, 9, 1])], (6 / 8 * 4 / 6 * 2 / 4) ** 0.25),
        # No quadruple is right.
        ([(SIX, [1, 2, 3, 6, 5, 4])], 0.0),
        ([(SIX, [])], 0.0),
        ([], 0.0),
    ],
)
def test_values_computed_by_hand(pairs: list[tuple[list[int], list[int]]], expected: float) -> None:
    assert bleu(pairs) == pytest.approx(expected, abs=1e-12)


def test_the_clipped_count_of_the_paper() -> None:
    """Papineni et al. 2002, example 2: "the" counts twice of seven times. With one truth it is 2 of 7."""
    the, cat, is_, on, mat = range(5)
    truth, guess = [the, cat, is_, on, the, mat], [the] * 7
    # Runs of two and more are wrong, so the whole is 0; the share of single tokens shows with a corpus that has them.
    assert bleu([(truth, guess)]) == 0.0
    long = list(range(10, 20))
    shares = (2 + 10) / (7 + 10), 9 / (6 + 9), 8 / (5 + 8), 7 / (4 + 7)
    assert bleu([(truth, guess), (long, long)]) == pytest.approx(math.prod(shares) ** 0.25)


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_it_is_a_share_and_one_only_for_what_is_equal(truth: list[int], guess: list[int]) -> None:
    value = bleu([(truth, guess)])
    assert 0.0 <= value <= 1.0
    if truth == guess and len(truth) >= 4:
        assert value == 1.0
    if len(truth) == len(guess) and sorted(truth) != sorted(guess):
        assert value < 1.0

"""Paired differences over seeds, against scipy and by hand."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from gm_train.ablation.seed_statistics import over_seeds, paired_difference

A, B = {0: 5.0, 1: 7.0, 2: 6.0}, {0: 4.0, 1: 5.0, 2: 3.0}


def test_a_difference_is_paired_by_seed() -> None:
    found = paired_difference(A, B, True)
    # Differences 1, 2, 3: mean 2, sd 1; the 97.5 % quantile of t with two degrees of freedom is 4.3027.
    assert found["mean"] == pytest.approx(2.0)
    assert found["low"] == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert found["high"] == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert found["outcome"] == "not shown"
    # The order of seeds does not matter, nor does a seed that one of both lacks.
    assert paired_difference({2: 6.0, 0: 5.0, 1: 7.0, 9: 100.0}, B, True) == found


@given(st.lists(st.tuples(st.integers(-80, 80), st.integers(-80, 80)), min_size=3, max_size=6))
def test_the_interval_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = ({seed: pair[i] / 8 for seed, pair in enumerate(pairs)} for i in (0, 1))
    assume(len({x - y for x, y in pairs}) > 1)
    found = paired_difference(a, b, True)
    expected = stats.ttest_rel(list(a.values()), list(b.values())).confidence_interval(0.95)
    assert found["low"] is not None
    assert found["high"] is not None
    assert found["low"] == pytest.approx(expected.low, abs=1e-6)
    assert found["high"] == pytest.approx(expected.high, abs=1e-6)


def test_overlapping_splits_widen_the_interval() -> None:
    plain, wider = paired_difference(A, B, True), paired_difference(A, B, True, 1 / 3)
    assert plain["high"] is not None
    assert wider["high"] is not None
    # sqrt(1 / 3 + 1 / 3) / sqrt(1 / 3)
    assert (wider["high"] - 2) / (plain["high"] - 2) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("differences", "more_is_better", "outcome"),
    [
        ((1.0, 1.1, 0.9), True, "better"),
        ((1.0, 1.1, 0.9), False, "worse"),
        ((-1.0, -1.1, -0.9), True, "worse"),
        ((-1.0, -1.1, -0.9), False, "better"),
        ((-1.0, 1.0, 0.5), True, "not shown"),
        ((0.0, 0.0, 0.0), True, "not shown"),
    ],
)
def test_a_difference_is_shown_if_zero_lies_outside_of_the_interval(
    differences: tuple[float, ...], more_is_better: bool, outcome: str
) -> None:
    scores = {seed: 3.0 + difference for seed, difference in enumerate(differences)}
    assert paired_difference(scores, dict.fromkeys(range(3), 3.0), more_is_better)["outcome"] == outcome


def test_one_seed_shows_nothing() -> None:
    assert paired_difference({4: 9.0}, {4: 1.0}, True) == {
        "mean": 8.0,
        "low": None,
        "high": None,
        "outcome": "not shown",
    }
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({1: 1.0}, {2: 1.0}, True)


def test_what_seeds_do_not_change_has_no_spread() -> None:
    assert over_seeds({0: 0.1, 1: 0.1, 2: 0.1}) == {"mean": pytest.approx(0.1), "sd": None}
    assert over_seeds(A) == {"mean": 6.0, "sd": 1.0}

"""Means over seeds, and paired differences with a t-interval."""

import math
from collections.abc import Mapping
from typing import TypedDict

from scipy import stats

from gm_train.evaluation.figures import Figure, figure

CONFIDENCE = 0.95
BETTER, WORSE, OPEN = "better", "worse", "not shown"

#: Seed to score.
Scores = Mapping[int, float]


class Difference(TypedDict):
    """A paired difference over seeds.

    `mean`; `low` and `high`, the ends of its interval (None with one seed); `outcome`: better or worse if zero lies
    outside of the interval, otherwise not shown.
    """

    mean: float
    low: float | None
    high: float | None
    outcome: str


def over_seeds(scores: Scores) -> Figure:
    """Mean and standard deviation over seeds; no deviation if all are equal, as of what seeds do not change."""
    values = list(scores.values())
    found = figure(values)
    return {"mean": found["mean"], "sd": None if min(values) == max(values) else found["sd"]}


def paired_difference(scores: Scores, base: Scores, more_is_better: bool, held_out_ratio: float = 0.0) -> Difference:
    """Compare two variants, seed by seed.

    The interval is mean ± t * sd * sqrt(1 / n + r), with the 97.5 % quantile t of Student's distribution with n - 1
    degrees of freedom. r is 0 where all seeds have the same cells. Where each seed draws another split of the same
    cells, the splits overlap and differences are not independent: there r is test cells / training cells (Nadeau and
    Bengio, Machine Learning 52, 2003, equation 9).

    Args:
        scores: of a variant.
        base: of the one that it is compared with.
        more_is_better: whether the larger score wins.
        held_out_ratio: r.

    Raises:
        ValueError: there is no seed that both have.
    """
    differences = [scores[seed] - base[seed] for seed in scores if seed in base]
    if not differences:
        raise ValueError("no seed in common")
    found, n = figure(differences), len(differences)
    mean, sd = found["mean"], found["sd"]
    if sd is None:
        return {"mean": mean, "low": None, "high": None, "outcome": OPEN}
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sd * math.sqrt(1 / n + held_out_ratio)
    low, high = mean - half, mean + half
    sign = 1 if low > 0 else -1 if high < 0 else 0
    outcome = OPEN if not sign else BETTER if (sign > 0) == more_is_better else WORSE
    return {"mean": mean, "low": low, "high": high, "outcome": outcome}


def interval(found: Difference, decimals: int) -> str:
    """The interval of a difference in brackets; empty with one seed."""
    if found["low"] is None or found["high"] is None:
        return ""
    return f" [{found['low']:+.{decimals}f}, {found['high']:+.{decimals}f}]"

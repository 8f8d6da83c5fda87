"""Find the cell length at which one contender overtakes another."""

import math
from itertools import pairwise
from typing import Any


def crossover(rows: list[dict[str, Any]], ours: str, theirs: str) -> dict[str, Any] | None:
    """Find where the median throughputs of two contenders meet.

    Between measured lengths, throughput is assumed to be linear in the logarithm of the length, as the lines of the
    picture are.

    Args:
        rows: rows of the race; natural lengths and contenders that ran out of memory are skipped.
        ours: name of one contender.
        theirs: name of the other one.

    Returns:
        None unless both were measured at two lengths or more. Otherwise `length`, the interpolated crossing (the last
        one of several), or None if one contender is faster everywhere; and `ahead`, the faster contender at the
        shortest and at the longest length.
    """
    by_length: dict[int, dict[str, float]] = {}
    for row in rows:
        if row.get("length") and "tokens_per_s" in row:
            by_length.setdefault(row["length"], {})[row["contender"]] = row["tokens_per_s"]
    points = [
        (math.log(length), rates[ours] - rates[theirs])
        for length, rates in sorted(by_length.items())
        if ours in rates and theirs in rates
    ]
    if len(points) < 2:
        return None
    length = None
    for (x0, y0), (x1, y1) in pairwise(points):
        if (y0 < 0) != (y1 < 0):
            length = math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return {"length": length, "ahead": [ours if y >= 0 else theirs for _, y in (points[0], points[-1])]}

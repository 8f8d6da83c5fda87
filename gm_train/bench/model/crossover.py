"""At which cell length one contender overtakes another."""

import math
from itertools import pairwise
from typing import Any


def crossover(rows: list[dict[str, Any]], ours: str, theirs: str) -> dict[str, Any] | None:
    """Where the throughputs of two contenders meet, from medians at the lengths measured.

    Between two lengths at which different ones are ahead, throughput is taken to be linear in the logarithm of the
    length: where the lines of the picture cross.

    Args:
        rows: of the race; natural lengths and contenders that ran out of memory are passed over.
        ours, theirs: names.

    Returns:
        None if not both were measured at two lengths; else `length`, interpolated, or None if one is ahead
        throughout, and `ahead`: who is ahead at the shortest and at the longest length. Of several crossings the
        last one counts.
    """
    by_length: dict[int, dict[str, float]] = {}
    for row in rows:
        if row.get("length") and "tokens_per_s" in row:
            by_length.setdefault(row["length"], {})[row["contender"]] = row["tokens_per_s"]
    points = [
        (math.log(length), found[ours] - found[theirs])
        for length, found in sorted(by_length.items())
        if ours in found and theirs in found
    ]
    if len(points) < 2:
        return None
    length = None
    for (x0, y0), (x1, y1) in pairwise(points):
        if (y0 < 0) != (y1 < 0):
            length = math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return {"length": length, "ahead": [ours if y >= 0 else theirs for _, y in (points[0], points[-1])]}

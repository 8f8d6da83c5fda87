"""Small steps of the scan's loops in `scan_states.py` and `scan_outputs.py`, in float32."""

from typing import Any

import numpy as np

from data_shards.compiled import compiled
from gm_train.model.loops.powers import VECTORS, power_of_2
from gm_train.model.scan_limits import SMALLEST

_SMALLEST = np.float32(SMALLEST)
_ZERO = np.float32(0)


@compiled(inline="always", **VECTORS)
def decay(exponent: Any) -> Any:
    """2^exponent, and NaN of NaN; 0 below the smallest exponent of `scan_limits.py`."""
    return _ZERO if exponent < _SMALLEST else power_of_2(exponent)


@compiled(**VECTORS)
def borders(runs: Any, begin: int, end: int, reverse: bool) -> Any:
    """The cells whose states enter and leave a chunk; no cell has the number -1."""
    if reverse:
        return (runs[end] if end < len(runs) else -1), runs[begin]
    return (runs[begin - 1] if begin else -1), runs[end - 1]


@compiled(**VECTORS)
def scaled(flat: Any, start: int, step: int, scale: Any, out: Any) -> None:
    """Write rows times a factor each."""
    for t in range(len(out)):
        value, row, factor = flat[start + t * step : start + t * step + out.shape[1]], out[t], scale[t]
        for p in range(len(row)):
            row[p] = value[p] * factor


@compiled(**VECTORS)
def add_rows(rows: Any, out: Any, start: int, step: int) -> None:
    """Add rows to a part of `out`."""
    for t in range(len(rows)):
        row, total = rows[t], out[start + t * step : start + t * step + rows.shape[1]]
        for p in range(len(row)):
            total[p] += row[p]


@compiled(**VECTORS)
def zero_rows(out: Any, start: int, step: int, m: int, n: int) -> None:
    """Write zeros into m rows of n."""
    for t in range(m):
        out[start + t * step : start + t * step + n] = _ZERO


@compiled(**VECTORS)
def powers(exponents: Any, more: Any, runs: Any, cell: int, out: Any) -> None:
    """2^(exponents + more) at the positions of one cell, 0 at others."""
    for t in range(len(runs)):
        value = decay(exponents[t] + more)
        out[t] = value if runs[t] == cell else _ZERO


@compiled(**VECTORS)
def readable(runs: Any, reverse: bool, low: Any, high: Any) -> None:
    """The range of positions that each position reads in its chunk."""
    m = len(runs)
    for t in range(m):
        same = t > 0 and runs[t] == runs[t - 1]
        low[t], high[t] = (low[t - 1] if same else t), t + 1
    if reverse:
        for t in range(m - 1, -1, -1):
            same = t < m - 1 and runs[t] == runs[t + 1]
            low[t], high[t] = t, high[t + 1] if same else t + 1

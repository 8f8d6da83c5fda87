"""Whole cells into rows of equal length."""

import numba
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@numba.njit("int64[:](int64[:], int64[:], int64)", cache=True)
def _best_fit(lengths, by_length, row_length):  # type: ignore[no-untyped-def]
    n_cells = len(lengths)
    row_of = np.empty(n_cells, np.int64)
    space = np.empty(n_cells, np.int64)
    n_rows = 0
    for cell in by_length:
        best = -1
        for row in range(n_rows):
            if space[row] >= lengths[cell] and (best < 0 or space[row] < space[best]):
                best = row
        if best < 0:
            best = n_rows
            space[best] = row_length
            n_rows += 1
        space[best] -= lengths[cell]
        row_of[cell] = best
    return row_of


def pack(lengths: I64, row_length: int) -> list[I64]:
    """Pack cells into rows by best fit decreasing (Johnson 1974, doi:10.1137/0203025).

    Each cell, longest first, goes into the fullest row that still has room. Equal lengths go in the order given, equal
    rows to the oldest: the result is a function of `lengths` alone.

    Args:
        lengths: int64 (n_cells,), tokens of each cell, at most `row_length`.
        row_length: tokens of a row.

    Returns:
        The cells of each row, int64, in the order in which they stand in it.

    Raises:
        ValueError: a cell is longer than a row.
    """
    if len(lengths) == 0:
        return []
    if int(lengths.max()) > row_length:
        raise ValueError(f"a cell of {int(lengths.max()):,} tokens does not fit a row of {row_length:,}")
    by_length = np.argsort(-lengths, kind="stable")
    row_of = _best_fit(lengths, by_length, row_length)
    by_row = by_length[np.argsort(row_of[by_length], kind="stable")]
    ends = np.cumsum(np.bincount(row_of))
    return np.split(by_row, ends[:-1])

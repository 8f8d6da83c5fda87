"""Pack whole cells into rows of equal length, in compiled code. The result depends on lengths and hashes only."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from data_shards.compiled import compiled
from data_shards.hashing import mix64_scalar

I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
U64 = npt.NDArray[np.uint64]

_INDEX_BITS = 24  # low bits of a sort key: index of a cell or row in its group; above them its length or space


@compiled("Tuple((int64[:], int64))(int64[:], int64[:], int64)")
def _best_fit(lengths, by_length, row_length):  # type: ignore[no-untyped-def]
    """Row of each cell, and the number of rows.

    The open rows are in one list, sorted by (space, age). Bisection finds the row that a cell takes; the row then
    moves down the list, since its space has shrunk.
    """
    n_cells = len(lengths)
    row_of = np.empty(n_cells, np.int64)
    rows = np.empty(n_cells, np.int64)
    n_rows = 0
    for cell in by_length:
        length = lengths[cell]
        low, high = 0, n_rows
        wanted = length << _INDEX_BITS
        while low < high:
            middle = (low + high) >> 1
            if rows[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        found = low
        if found == n_rows:
            rows[found] = (row_length << _INDEX_BITS) | n_rows
            n_rows += 1
        row_of[cell] = rows[found] & ((1 << _INDEX_BITS) - 1)
        left = rows[found] - wanted
        low, high = 0, found
        while low < high:
            middle = (low + high) >> 1
            if rows[middle] < left:
                low = middle + 1
            else:
                high = middle
        for i in range(found, low, -1):
            rows[i] = rows[i - 1]
        rows[low] = left
    return row_of, n_rows


@compiled("int64[:](int64[:])")
def _longest_first(lengths):  # type: ignore[no-untyped-def]
    keys = np.empty(len(lengths), np.int64)
    for i in range(len(lengths)):
        keys[i] = (-lengths[i] << _INDEX_BITS) | i
    keys.sort()
    return keys & ((1 << _INDEX_BITS) - 1)


@compiled("Tuple((int64[:], int64[:]))(int64[:], uint64[:], uint64[:], int64)")
def _arrange(lengths, hashes, row_keys, row_length):  # type: ignore[no-untyped-def]
    n_cells, n_groups = len(lengths), len(row_keys)
    shuffled = np.argsort(hashes, kind="mergesort")
    order = np.empty(n_cells, np.int64)
    cells_of_row = np.empty(n_cells, np.int64)
    n_rows = 0
    start = 0
    for group in range(n_groups):
        size = n_cells // n_groups + (1 if group < n_cells % n_groups else 0)
        members = shuffled[start : start + size]
        group_lengths = lengths[members]
        by_length = _longest_first(group_lengths)
        row_of, n_here = _best_fit(group_lengths, by_length, row_length)
        row_hashes = np.empty(n_here, np.uint64)
        sizes = np.zeros(n_here, np.int64)
        for row in range(n_here):
            row_hashes[row] = mix64_scalar(np.uint64(row) ^ row_keys[group])
        for row in row_of:
            sizes[row] += 1
        at = np.empty(n_here, np.int64)
        filled = start
        for row in np.argsort(row_hashes, kind="mergesort"):
            cells_of_row[n_rows] = sizes[row]
            n_rows += 1
            at[row] = filled
            filled += sizes[row]
        for cell in by_length:
            row = row_of[cell]
            order[at[row]] = members[cell]
            at[row] += 1
        start += size
    return order, cells_of_row[:n_rows].copy()


def arrange(lengths: I64, hashes: U64, row_keys: U64, row_length: int) -> tuple[I64, I64]:
    """Permute cells, cut them into near-equal groups, pack each group into rows, permute the rows of each group.

    A group is packed by best fit decreasing (Johnson 1974, doi:10.1137/0203025): each cell, longest first, goes into
    the fullest row that still has room. Equal lengths go in the order of their hashes, equal rows to the oldest.

    Args:
        lengths: int64 (n_cells,), tokens of each cell, at most `row_length`.
        hashes: uint64 (n_cells,), the order of the cells before they are cut.
        row_keys: uint64 (n_groups,), key of the permutation of each group's rows. The first groups have one more cell
            if they cannot all be equal.
        row_length: tokens of a row.

    Returns:
        The cells in the order of the rows, int64 (n_cells,), and the number of cells of each row, int64 (n_rows,).

    Raises:
        ValueError: a cell is longer than a row, or there are more cells than a group can have.
    """
    if len(lengths) and int(lengths.max()) > row_length:
        raise ValueError(f"a cell of {int(lengths.max()):,} tokens does not fit a row of {row_length:,}")
    if len(lengths) >= 1 << _INDEX_BITS:
        raise ValueError(f"{len(lengths):,} cells at once: at most {1 << _INDEX_BITS:,}")
    order, cells_of_row = _arrange(lengths, hashes, row_keys, row_length)
    return order, cells_of_row


@compiled("Tuple((int64[:], int64[:], int64[:], int64[:], int64[:]))(int64[:], uint8[:], int64[:], int64)")
def select_cells(indptr, split, n_cells, wanted):  # type: ignore[no-untyped-def]
    """Select the cells of one split from several blocks.

    Args:
        indptr: int64 (sum of n_cells + n_blocks,), indptr of one block after another, each from 0.
        split: uint8 (sum of n_cells,), split of each cell.
        n_cells: int64 (n_blocks,), cells of each block.
        wanted: the split.

    Returns:
        For each selected cell, int64 (n,) each: its block, its number in the block, its first token in the block, its
        number of tokens. Then int64 (n_blocks + 1,): where each block begins among the selected cells.
    """
    n = 0
    for value in split:
        n += value == wanted
    block_of = np.empty(n, np.int64)
    cell_of = np.empty(n, np.int64)
    start_of = np.empty(n, np.int64)
    length_of = np.empty(n, np.int64)
    first = np.zeros(len(n_cells) + 1, np.int64)
    found = 0
    cell = 0
    for block in range(len(n_cells)):
        for number in range(n_cells[block]):
            if split[cell] == wanted:
                block_of[found] = block
                cell_of[found] = number
                start_of[found] = indptr[cell + block]
                length_of[found] = indptr[cell + block + 1] - indptr[cell + block]
                found += 1
            cell += 1
        first[block + 1] = found
    return block_of, cell_of, start_of, length_of, first


@compiled("void(uint16[::1], int64[:], int64[:], int64[:], int64[:], uint16[::1])")
def copy_cells(tokens, starts, lengths, to, which, out):  # type: ignore[no-untyped-def]
    """Copy cells from one token array to another.

    Args:
        tokens: uint16 (n_tokens,), where the cells come from.
        starts: int64 (n_cells,), where each cell begins in `tokens`.
        lengths: int64 (n_cells,), tokens of each cell.
        to: int64 (n_cells,), where each cell begins in `out`.
        which: int64 (n,), the cells to copy.
        out: uint16, gets the cells.
    """
    for cell in which:
        # Two slices and a loop: in numba an assignment between slices is half as fast.
        source = tokens[starts[cell] : starts[cell] + lengths[cell]]
        copy = out[to[cell] : to[cell] + lengths[cell]]
        for i in range(len(source)):
            copy[i] = source[i]


def _pointer_to(dtype: Any) -> Any:
    """Make an address a pointer to numbers of a type, in compiled code.

    Lists of arrays that numba checks (`numba.typed.List`) in place of addresses make loading 11 % slower, measured with
    `gm-train bench loader`; see docs/BENCHMARKS.md.
    """

    @intrinsic
    def pointer(context, address):  # type: ignore[no-untyped-def]
        to = types.CPointer(dtype)  # type: ignore[no-untyped-call]
        return to(address), lambda context, builder, _, words: builder.inttoptr(words[0], context.get_value_type(to))

    return pointer


_tokens_at, _numbers_at = _pointer_to(types.uint16), _pointer_to(types.int64)


@compiled("Tuple((uint16[:], int64[:], int64[:], int64[:], boolean[:], int64[:]))(int64[:], int64, int64[:,::1])")
def copy_rows(first, n_rows, pools):  # type: ignore[no-untyped-def]
    """Copy the same number of rows of each of several lanes, lane after lane.

    Args:
        first: int64 (n_lanes,), the first row of each.
        n_rows: rows of each.
        pools: int64 (n_lanes, 3), addresses of what each lane's pool holds: its tokens, uint16; for each cell, int64,
            length, place, number within the block, and whether it is damaged; for each row, and behind the last,
            int64, the cells and tokens before it.

    Returns:
        As the attributes of `pool.Rows`.
    """
    n_cells = n_tokens = 0
    for lane in range(len(first)):
        start, stop = 2 * first[lane], 2 * (first[lane] + n_rows)
        ends = carray(_numbers_at(pools[lane, 2]), stop + 2)
        n_cells += ends[stop] - ends[start]
        n_tokens += ends[stop + 1] - ends[start + 1]
    out = np.empty(n_tokens, np.uint16)
    lengths = np.empty(n_cells, np.int64)
    places = np.empty(n_cells, np.int64)
    numbers = np.empty(n_cells, np.int64)
    damaged = np.empty(n_cells, np.bool_)
    cells_of_row = np.empty(len(first) * n_rows, np.int64)
    cell = token = row = 0
    for lane in range(len(first)):
        start, stop = 2 * first[lane], 2 * (first[lane] + n_rows)
        ends = carray(_numbers_at(pools[lane, 2]), stop + 2)
        size = ends[stop + 1] - ends[start + 1]
        tokens = carray(_tokens_at(pools[lane, 0]), ends[stop + 1])
        source = tokens[ends[start + 1] :]
        copy = out[token : token + size]
        for i in range(size):
            copy[i] = source[i]
        token += size
        cells = carray(_numbers_at(pools[lane, 1]), 4 * ends[stop])
        for i in range(4 * ends[start], 4 * ends[stop], 4):
            lengths[cell] = cells[i]
            places[cell] = cells[i + 1]
            numbers[cell] = cells[i + 2]
            damaged[cell] = cells[i + 3] != 0
            cell += 1
        for i in range(start, stop, 2):
            cells_of_row[row] = ends[i + 2] - ends[i]
            row += 1
    return out, lengths, places, numbers, damaged, cells_of_row


@compiled("void(uint16[::1], int64[:], int64[:], int64[:,::1], int64[:,::1])")
def lay_out(tokens, lengths, cells_of_row, ids, segment):  # type: ignore[no-untyped-def]
    """Write packed rows into matrices.

    Args:
        tokens: uint16 (n_tokens,), cells one after another, row by row.
        lengths: int64 (n_cells,), tokens of each cell.
        cells_of_row: int64 (n_rows,), number of cells of each row.
        ids: int64 (n_rows, row_length), gets the tokens, 0 on the unused tail.
        segment: int64 (n_rows, row_length), gets 1 … n for the cells of a row and 0 on the tail.
    """
    cell = 0
    start = 0
    for row in range(len(cells_of_row)):
        column = 0
        for number in range(cells_of_row[row]):
            length = lengths[cell]
            source = tokens[start : start + length]
            shown = ids[row, column : column + length]
            for i in range(length):
                shown[i] = source[i]
            segment[row, column : column + length] = number + 1
            column += length
            start += length
            cell += 1
        ids[row, column:] = 0
        segment[row, column:] = 0

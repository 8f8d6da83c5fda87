"""Packing loses no cell, overfills no row and depends only on the lengths and hashes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.hashing import mix64_int
from data_shards.rows.packing import arrange


def slow_arrange(lengths: list[int], hashes: list[int], row_keys: list[int], row_length: int) -> list[list[int]]:
    """The algorithm of the design, written out slowly."""
    shuffled = sorted(range(len(lengths)), key=lambda cell: hashes[cell])
    found = []
    for group, key in zip(np.array_split(shuffled, len(row_keys)), row_keys, strict=True):
        rows: list[list[int]] = []
        for cell in sorted(group.tolist(), key=lambda cell: -lengths[cell]):
            fitting = [row for row in rows if sum(lengths[i] for i in row) + lengths[cell] <= row_length]
            if fitting:
                max(fitting, key=lambda row: sum(lengths[i] for i in row)).append(cell)
            else:
                rows.append([cell])
        found += [rows[number] for number in sorted(range(len(rows)), key=lambda number: mix64_int(number ^ key))]
    return found


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Lengths and hashes, with some equal ones, and the keys of the groups."""
    lengths = draw(st.lists(st.integers(0, 50), max_size=80))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    hashes = rng.integers(0, draw(st.sampled_from([3, 2**63])), len(lengths), dtype=np.uint64).tolist()
    n_groups = draw(st.integers(1, max(1, len(lengths))))
    return lengths, hashes, rng.integers(0, 2**63, n_groups).tolist()


@given(drawn=cells())
def test_agrees_with_best_fit_decreasing_written_out(drawn: tuple[list[int], list[int], list[int]]) -> None:
    lengths, hashes, row_keys = drawn
    order, cells_of_row = arrange(
        np.array(lengths, np.int64), np.array(hashes, np.uint64), np.array(row_keys, np.uint64), 50
    )
    rows = [row.tolist() for row in np.split(order, np.cumsum(cells_of_row)[:-1])] if lengths else []
    assert rows == slow_arrange(lengths, hashes, row_keys, 50)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[cell] for cell in row) <= 50 for row in rows)


def test_a_cell_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        arrange(np.array([101]), np.zeros(1, np.uint64), np.zeros(1, np.uint64), 100)

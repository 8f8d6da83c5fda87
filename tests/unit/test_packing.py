"""Packing loses no cell, overfills no row and depends on the lengths alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.packing import pack


def slow_best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for cell in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [row for row in rows if sum(lengths[i] for i in row) + lengths[cell] <= row_length]
        if fitting:
            max(fitting, key=lambda row: sum(lengths[i] for i in row)).append(cell)
        else:
            rows.append([cell])
    return rows


@given(lengths=st.lists(st.integers(1, 50), max_size=60))
def test_agrees_with_best_fit_decreasing_written_out(lengths: list[int]) -> None:
    assert [row.tolist() for row in pack(np.array(lengths, dtype=np.int64), 50)] == slow_best_fit(lengths, 50)


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=200))
def test_rows_hold_every_cell_once_and_do_not_overflow(lengths: list[int]) -> None:
    array = np.array(lengths, dtype=np.int64)
    rows = pack(array, 100)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    assert all(array[row].sum() <= 100 for row in rows)


def test_a_cell_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack(np.array([101], dtype=np.int64), 100)

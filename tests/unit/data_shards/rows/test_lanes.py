"""Lanes of a store: every training cell once per pass, no held-out cell, and the same rows from any position."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import DataError
from data_shards.rows.block_order import BlockOrder
from data_shards.rows.lanes import Lanes, validation_rows
from data_shards.rows.pool import RowPlan, Rows
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import TRAIN, VALIDATION
from tests.conftest import Atlas
from tests.support.random_stores import flip_byte, write_store


def make_plan(lanes: int = 4, pool_blocks: int = 2) -> RowPlan:
    return RowPlan(seed=5, lanes=lanes, pool_blocks=pool_blocks, group_cells=8, row_length=96)


def ids(rows: Rows) -> list[tuple[int, int]]:
    return list(zip(rows.places.tolist(), rows.cells.tolist(), strict=True))


def tokens_of(rows: Rows) -> dict[tuple[int, int], list[int]]:
    cells = np.split(rows.tokens, np.cumsum(rows.lengths)[:-1])
    return {cell: tokens.tolist() for cell, tokens in zip(ids(rows), cells, strict=True)}


def same(a: Rows, b: Rows) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@settings(max_examples=20)
@given(lanes=st.sampled_from([1, 2, 3, 4, 7, 300]), pool_blocks=st.integers(1, 5))
def test_the_lanes_together_read_every_training_cell_once_a_pass(atlas: Atlas, lanes: int, pool_blocks: int) -> None:
    reader = StoreReader(atlas.store)
    plan = make_plan(lanes, pool_blocks)
    order = BlockOrder(plan.seed, reader.manifest.hash, reader.manifest.n_blocks)
    n_blocks = sum(reader.manifest.n_blocks)
    blocks = reader.read(range(n_blocks))
    seen: list[tuple[int, int]] = []
    for lane in range(lanes):
        stream = Lanes(reader, plan, {lane: (0, 0)})
        # Read whole pools until all of this lane's places in the first pass are read.
        while stream.positions[lane][0] * pool_blocks * lanes + lane < n_blocks:
            rows = stream.take(1)
            if stream.positions[lane][0] * pool_blocks * lanes + lane < n_blocks:
                seen += [pair for pair in ids(rows) if pair[0] < n_blocks]
    expected = [
        (place, int(cell))
        for place, block in enumerate(order.blocks(np.arange(n_blocks)).tolist())
        for cell in np.flatnonzero(blocks[block].split == TRAIN)
    ]
    assert Counter(seen) == Counter(expected)


def test_rows_hold_the_tokens_that_the_store_holds(atlas: Atlas) -> None:
    reader = StoreReader(atlas.store)
    plan = make_plan()
    order = BlockOrder(plan.seed, reader.manifest.hash, reader.manifest.n_blocks)
    rows = Lanes(reader, plan, dict.fromkeys(range(4), (0, 0))).take(6)
    assert len(rows) == 24
    for (place, cell), tokens in tokens_of(rows).items():
        block = reader.read(order.blocks(np.array([place])).tolist())[0]
        assert tokens == block.tokens[block.indptr[cell] : block.indptr[cell + 1]].tolist()


@settings(max_examples=25)
@given(before=st.integers(0, 40), at_once=st.integers(1, 30), lanes=st.sets(st.integers(0, 3), min_size=1))
def test_lanes_continue_from_any_position(atlas: Atlas, before: int, at_once: int, lanes: set[int]) -> None:
    """Row by row or many at once, together or alone, from the beginning or from a position."""
    reader = StoreReader(atlas.store)
    together = Lanes(reader, make_plan(), dict.fromkeys(lanes, (0, 0)))
    together.take(before)
    resumed = Lanes(reader, make_plan(), together.positions)
    for _ in range(3):
        alone = [Lanes(reader, make_plan(), {lane: at}) for lane, at in together.positions.items()]
        rows = together.take(at_once)
        assert same(rows, resumed.take(at_once))
        assert same(rows, Rows.join([lane.take(1) for lane in alone for _ in range(at_once)]))
        assert together.positions == resumed.positions == {k: v for lane in alone for k, v in lane.positions.items()}


def test_parts_of_rows_are_what_they_were(atlas: Atlas) -> None:
    rows = Lanes(StoreReader(atlas.store), make_plan(), {0: (0, 0), 2: (1, 0)}).take(7)
    assert same(Rows.join([rows.part(0, 3), rows.part(3, 3), rows.part(3, 14)]), rows)
    ids, segment = rows.lay_out(96)
    assert [len(row[row > 0]) for row in segment] == [
        int(part.lengths.sum()) for part in map(rows.part, range(14), range(1, 15))
    ]
    assert ids[segment > 0].tolist() == rows.tokens.tolist()
    assert not ids[segment == 0].any()
    within = [number for n_cells in rows.cells_of_row.tolist() for number in range(1, n_cells + 1)]
    assert segment[segment > 0].tolist() == np.repeat(within, rows.lengths).tolist()


def test_validation_rows_are_held_out_cells_and_bounded(atlas: Atlas) -> None:
    reader = StoreReader(atlas.store)
    n_validation = sum(entry.n_validation for entry in reader.manifest.datasets)
    blocks = reader.read(range(sum(reader.manifest.n_blocks)))
    held_out = {
        tuple(block.tokens[block.indptr[cell] : block.indptr[cell + 1]].tolist())
        for block in blocks
        for cell in np.flatnonzero(block.split == VALIDATION)
    }
    everything = validation_rows(reader, make_plan(), 10_000)
    assert len(ids(everything)) == n_validation == len(set(ids(everything)))
    assert {tuple(tokens) for tokens in tokens_of(everything).values()} == held_out
    assert len(ids(validation_rows(reader, make_plan(), 7))) == 7


def test_validation_reads_no_data_set_without_held_out_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small data set holds cells out, a large one holds none: only the small one is read."""
    small = np.full(40, TRAIN)
    small[[3, 17, 39]] = VALIDATION
    write_store(tmp_path / "s.zarr", [np.full(4000, TRAIN), small], block_cells=8)
    reader = StoreReader(tmp_path / "s.zarr")
    read: list[int] = []
    begin = reader.begin
    monkeypatch.setattr(reader, "begin", lambda blocks: read.extend(blocks) or begin(blocks))
    rows = validation_rows(reader, make_plan(), 100)
    assert sorted(read) == list(range(500, 505))
    assert sorted(rows.cells.tolist()) == [1, 3, 7]
    held_out = [reader.read([500 + cell // 8])[0] for cell in (3, 17, 39)]
    expected = {
        tuple(b.tokens[b.indptr[c % 8] : b.indptr[c % 8 + 1]]) for b, c in zip(held_out, (3, 17, 39), strict=True)
    }
    assert {tuple(tokens) for tokens in tokens_of(rows).values()} == expected


def test_a_missing_token_file_is_an_error_and_never_zeros(atlas: Atlas, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    store = tmp_path / "store.zarr"
    shutil.copytree(atlas.store, store)
    shutil.rmtree(store / "first" / "tokens" / "c")
    with pytest.raises(DataError, match="first/tokens"):
        Lanes(StoreReader(store), make_plan(), {0: (0, 0)}).take(20)


def test_a_flipped_byte_is_an_error(atlas: Atlas, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    store = tmp_path / "store.zarr"
    shutil.copytree(atlas.store, store)
    shard = store / "first" / "tokens" / "c" / "0"
    flip_byte(shard, 0)
    with pytest.raises(DataError, match="verify"):
        Lanes(StoreReader(store), make_plan(), {0: (0, 0)}).take(20)

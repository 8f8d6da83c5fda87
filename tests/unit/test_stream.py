"""Lanes of a real store: every training cell once a pass, no held-out cell, the same from any position."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import DataError
from data_shards.manifest import TRAIN, VALIDATION
from data_shards.order import BlockOrder
from data_shards.reader import StoreReader
from data_shards.stream import LaneStream, Plan, Row, validation_rows
from tests.conftest import Atlas


def make_plan(lanes: int = 4, pool_blocks: int = 2) -> Plan:
    return Plan(seed=5, lanes=lanes, pool_blocks=pool_blocks, group_cells=8, row_length=96)


def ids(rows: list[Row]) -> list[tuple[int, int]]:
    return [pair for row in rows for pair in zip(row.places.tolist(), row.cells.tolist(), strict=True)]


def tokens_of(rows: list[Row]) -> dict[tuple[int, int], list[int]]:
    found = {}
    for row in rows:
        starts = np.cumsum(row.lengths) - row.lengths
        for place, cell, start, n in zip(row.places, row.cells, starts, row.lengths, strict=True):
            found[int(place), int(cell)] = row.tokens[start : start + n].tolist()
    return found


@settings(max_examples=20)
@given(lanes=st.sampled_from([1, 2, 3, 4, 7, 300]), pool_blocks=st.integers(1, 5))
def test_the_lanes_together_read_every_training_cell_once_a_pass(atlas: Atlas, lanes: int, pool_blocks: int) -> None:
    reader = StoreReader(atlas.store)
    plan = make_plan(lanes, pool_blocks)
    order = BlockOrder(plan.seed, reader.manifest.hash, reader.n_blocks)
    blocks = reader.read(list(range(reader.n_blocks)))
    seen: list[tuple[int, int]] = []
    for lane in range(lanes):
        stream = LaneStream(reader, plan, lane)
        # Read whole pools until every place of the first pass that is this lane's is behind.
        while stream.pool * pool_blocks * lanes + lane < reader.n_blocks:
            rows = stream.take(1)
            if (stream.pool * pool_blocks) * lanes + lane < reader.n_blocks:
                seen += [pair for pair in ids(rows) if pair[0] < reader.n_blocks]
    expected = [
        (place, int(cell))
        for place in range(reader.n_blocks)
        for cell in np.flatnonzero(blocks[order.block(place)].split == TRAIN)
    ]
    assert Counter(seen) == Counter(expected)


def test_rows_hold_the_tokens_that_the_store_holds(atlas: Atlas) -> None:
    reader = StoreReader(atlas.store)
    plan = make_plan()
    order = BlockOrder(plan.seed, reader.manifest.hash, reader.n_blocks)
    rows = LaneStream(reader, plan, lane=1).take(6)
    for (place, cell), tokens in tokens_of(rows).items():
        block = reader.read([order.block(place)])[0]
        assert tokens == block.tokens[block.indptr[cell] : block.indptr[cell + 1]].tolist()


@settings(max_examples=25)
@given(before=st.integers(0, 40), lane=st.integers(0, 3))
def test_a_stream_goes_on_from_any_position(atlas: Atlas, before: int, lane: int) -> None:
    reader = StoreReader(atlas.store)
    whole = LaneStream(reader, make_plan(), lane)
    whole.take(before)
    resumed = LaneStream(reader, make_plan(), lane, whole.pool, whole.row)
    for _ in range(8):
        a, b = whole.take(1)[0], resumed.take(1)[0]
        assert (a.places.tolist(), a.cells.tolist(), a.tokens.tolist()) == (
            b.places.tolist(), b.cells.tolist(), b.tokens.tolist()
        )  # fmt: skip
        assert (whole.pool, whole.row) == (resumed.pool, resumed.row)


def test_validation_rows_are_held_out_cells_and_bounded(atlas: Atlas) -> None:
    reader = StoreReader(atlas.store)
    n_validation = sum(entry.n_validation for entry in reader.manifest.datasets)
    blocks = reader.read(list(range(reader.n_blocks)))
    held_out = {
        tuple(block.tokens[block.indptr[cell] : block.indptr[cell + 1]].tolist())
        for block in blocks
        for cell in np.flatnonzero(block.split == VALIDATION)
    }
    everything = validation_rows(reader, make_plan(), 10_000)
    assert len(ids(everything)) == n_validation == len(set(ids(everything)))
    assert {tuple(tokens) for tokens in tokens_of(everything).values()} == held_out
    assert len(ids(validation_rows(reader, make_plan(), 7))) == 7


def test_a_missing_token_file_is_an_error_and_never_zeros(atlas: Atlas, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    store = tmp_path / "store.zarr"
    shutil.copytree(atlas.store, store)
    shutil.rmtree(store / "first" / "tokens" / "c")
    with pytest.raises(DataError, match="first/tokens"):
        LaneStream(StoreReader(store), make_plan(), 0).take(20)


def test_a_flipped_byte_is_an_error(atlas: Atlas, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    store = tmp_path / "store.zarr"
    shutil.copytree(atlas.store, store)
    shard = store / "first" / "tokens" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[10] ^= 255
    shard.write_bytes(content)
    with pytest.raises(DataError, match="verify"):
        LaneStream(StoreReader(store), make_plan(), 0).take(20)

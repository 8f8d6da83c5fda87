"""A token chunk whose checksum fails: its cells keep their slots, and nothing else changes."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.files import location
from data_shards.files.location import Retries
from data_shards.rows.lanes import Lanes, validation_rows
from data_shards.rows.pool import RowPlan, Rows
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import VALIDATION
from data_shards.store.quarantine import DamagedChunk, Quarantine
from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.batches import make_examples
from gm_train.objective.recipe import Recipe
from tests.support import http_store
from tests.support.random_stores import CHUNK, flip_byte, write_store

PLAN = RowPlan(seed=3, lanes=3, pool_blocks=4, group_cells=16, row_length=60)
LOST = {"d0": [1, 9], "d1": [0]}  # chunks


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole store, and a copy with three damaged chunks in three files."""
    folder = tmp_path_factory.mktemp("quarantine")
    rng = np.random.default_rng(0)
    write_store(folder / "whole", [rng.integers(0, 2, 90).astype(np.uint8), np.zeros(25, np.uint8)], 4)
    shutil.copytree(folder / "whole", folder / "damaged")
    for name, shard, chunk in (("d0", 0, 1), ("d0", 1, 1), ("d1", 0, 0)):
        flip_byte(folder / "damaged" / name / "tokens" / "c" / str(shard), chunk)
    return folder / "whole", folder / "damaged"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits before further tries, in seconds; here they take no time."""
    waited: list[float] = []
    monkeypatch.setattr(location, "RETRIES", Retries(sleep=waited.append))
    return waited


def touched(store: Path, rows: Rows) -> list[bool]:
    """Which cells of the rows have tokens in a lost chunk, computed from the order of the blocks."""
    from data_shards.rows.lanes import block_order

    reader = StoreReader(store)
    manifest = reader.manifest
    bounds = {entry.name: reader._open(entry.name)[0]._array.read(0, entry.n_cells + 1) for entry in manifest.datasets}
    found = []
    blocks = block_order(reader, PLAN).blocks(rows.places)
    for block, cell in zip(blocks.tolist(), rows.cells.tolist(), strict=True):
        first = manifest.n_blocks[0]
        name, number = ("d0", block) if block < first else ("d1", block - first)
        start, stop = bounds[name][number * manifest.block_cells + cell :][:2]
        found.append(any(start < (chunk + 1) * CHUNK and chunk * CHUNK < stop for chunk in LOST[name]))
    return found


def test_the_order_is_the_same_and_the_cells_that_touch_lost_chunks_are_marked(
    stores: tuple[Path, Path], waits: list[float]
) -> None:
    whole, damaged = stores
    reader = StoreReader(damaged, max_damaged=3)
    at = dict.fromkeys(range(3), (0, 0))
    before, now = Lanes(StoreReader(whole), PLAN, at), Lanes(reader, PLAN, at)
    n_marked = 0
    for _ in range(12):
        a, b = before.take(5), now.take(5)
        assert before.positions == now.positions
        for name in ("lengths", "places", "cells", "cells_of_row"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert b.damaged.tolist() == touched(whole, a)
        assert not a.damaged.any()
        lost = np.repeat(b.damaged, b.lengths)
        assert np.array_equal(b.tokens, np.where(lost, 0, a.tokens))
        n_marked += int(b.damaged.sum())
    assert n_marked > 10
    new = reader.quarantine.take_new()
    assert sorted((chunk.data_set, chunk.start // CHUNK) for chunk in new) == [("d0", 1), ("d0", 9), ("d1", 0)]
    assert "d0/tokens/c/1, chunk 1 (elements 576 to 640)" in map(str, new)
    assert reader.quarantine.take_new() == ()
    # Each chunk was tried again twice with its block and twice alone, and never after it was given up.
    assert len(waits) == 2 * 2 * 3


def test_cells_that_end_or_begin_where_a_lost_chunk_does_are_whole() -> None:
    quarantine = Quarantine(1)
    quarantine.add(DamagedChunk("d0", "c/0", 1, 64, 128), DataError("unused"))
    tokens: Any = SimpleNamespace(path=Path("store/d0/tokens"))
    lost = quarantine.lost(tokens, np.array([0, 64, 65, 128, 192]))
    assert lost is not None
    assert lost.tolist() == [False, True, True, False]
    assert quarantine.lost(SimpleNamespace(path=Path("store/d1/tokens")), np.array([60, 130])) is None  # type: ignore[arg-type]


def test_held_out_cells_too(stores: tuple[Path, Path]) -> None:
    a = validation_rows(StoreReader(stores[0]), PLAN, 1000)
    b = validation_rows(StoreReader(stores[1], max_damaged=3), PLAN, 1000)
    blocks = StoreReader(stores[1], max_damaged=3).read(range(30))
    held = sum(int(block.damaged[block.split == VALIDATION].sum()) for block in blocks if block.damaged is not None)
    assert int(b.damaged.sum()) == held > 0
    assert np.array_equal(a.places, b.places)


def test_a_lost_cell_has_no_target_no_pair_and_changes_no_other(stores: tuple[Path, Path]) -> None:
    recipe = Recipe(ObjectiveConfig(language="masked", mask_rate=0.4), 3, 202, 60, None)
    at = dict.fromkeys(range(3), (0, 0))
    a = Lanes(StoreReader(stores[0]), PLAN, at).take(20)
    b = Lanes(StoreReader(stores[1], max_damaged=3), PLAN, at).take(20)
    before, now = make_examples(a, recipe), make_examples(b, recipe)
    ids, segment = a.lay_out(60)
    lost = replace(a, tokens=np.repeat(b.damaged, b.lengths).astype(np.uint16)).lay_out(60)[0].astype(bool)
    assert np.array_equal(now.segment, segment)
    assert np.array_equal(now.input_ids, np.where(lost, 0, before.input_ids))
    kept = ~lost.reshape(-1)[before.target_at]
    assert np.array_equal(now.target_at, before.target_at[kept])
    assert np.array_equal(now.targets, before.targets[kept])
    assert 0 < len(now.targets) < len(before.targets)
    assert now.n_tokens == int((ids > 0).sum() - lost.sum())
    assert now.n_cells == int((~b.damaged).sum())
    assert now.sample_hash != before.sample_hash


def test_beyond_the_budget_reading_stops(stores: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"d0.tokens|d1.tokens") as caught:
        StoreReader(stores[1], max_damaged=2).read(range(30))
    assert "no more than 2 damaged chunks" in str(caught.value)
    assert "d1/tokens/c/0, chunk 0 (elements 0 to 64) exceeds the limit" in str(caught.value)
    with pytest.raises(DataError, match="gm-train data verify"):
        StoreReader(stores[1]).read(range(30))


@pytest.mark.parametrize("name", ["indptr", "split"])
def test_where_cells_lie_cannot_be_passed_over(stores: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(stores[0], tmp_path / "store")
    flip_byte(tmp_path / "store" / "d0" / name / "c" / "0", 0)
    with pytest.raises(DataError, match=f"d0/{name}"):
        Lanes(StoreReader(tmp_path / "store", max_damaged=100), PLAN, {0: (0, 0)}).take(50)


def test_a_shard_without_its_index_cannot_be_passed_over(stores: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(stores[0], tmp_path / "store")
    shard = tmp_path / "store" / "d0" / "tokens" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[-10] ^= 255
    shard.write_bytes(content)
    with pytest.raises(DataError, match="shard index"):
        StoreReader(tmp_path / "store", max_damaged=100).read(range(30))


def test_what_fails_for_a_moment_is_read_again(
    stores: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole again by the time of the second try."""
    shutil.copytree(stores[1], tmp_path / "store")

    def repair(seconds: float) -> None:
        shutil.copytree(stores[0], tmp_path / "store", dirs_exist_ok=True, copy_function=_replace)

    monkeypatch.setattr(location, "RETRIES", Retries(sleep=repair))
    reader = StoreReader(tmp_path / "store")
    assert all(block.damaged is None for block in reader.read(range(30)))
    assert reader.quarantine.take_new() == ()


def _replace(source: str, target: str) -> None:
    """Replace a file atomically: other chunks of it may be read at the same time."""
    shutil.copyfile(source, f"{target}.new")
    os.replace(f"{target}.new", target)


def test_the_neighbours_of_a_lost_chunk_are_read_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk is lost. Its neighbour has wrong bytes, but only until it is read again on its own."""
    write_store(tmp_path / "store", [np.zeros(90, np.uint8)], 8)
    shard = tmp_path / "store" / "d0" / "tokens" / "c" / "0"
    flip_byte(shard, 1)
    whole = shutil.copyfile(shard, tmp_path / "whole")
    known = StoreReader(tmp_path / "store", cache_bytes=0, max_damaged=1)
    known.read([0])
    assert [chunk.chunk for chunk in known.quarantine.take_new()] == [1]
    flip_byte(shard, 0)
    monkeypatch.setattr(location, "RETRIES", Retries(sleep=lambda seconds: _replace(str(whole), str(shard))))
    damaged = known.read([0])[0].damaged
    assert known.quarantine.take_new() == ()
    assert damaged is not None
    assert not damaged.all()


def test_memory_that_is_still_written_into_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block with a known lost chunk does not wait for its own read, which may still write later."""
    write_store(tmp_path / "store", [np.zeros(400, np.uint8)], 8)
    whole = StoreReader(tmp_path / "store").read(range(50))
    ends = np.cumsum([len(block.tokens) for block in whole])
    over = int(np.searchsorted(ends, 512))  # spans two files
    asked, proceed = threading.Event(), threading.Event()
    answer = http_store._Handler.do_GET

    def late(handler: http_store._Handler) -> None:
        part = handler.headers.get("Range", "")
        # Delay only the first request for elements of the first file, not the one for its index.
        if handler.path.endswith("d0/tokens/c/0") and not part.startswith("bytes=-") and not asked.is_set():
            asked.set()
            proceed.wait(20)
        answer(handler)

    with http_store.serve(tmp_path) as served:
        reader = StoreReader(f"{served.url}/store", cache_bytes=0, max_damaged=1)
        tokens = reader._open("d0")[2]
        reader.quarantine.add(DamagedChunk.of(tokens, 7), DataError("lost"))
        monkeypatch.setattr(http_store._Handler, "do_GET", late)
        first = reader.begin([over, 49])
        first.wait()
        assert asked.wait(20)
        first.release()
        found = reader.read([40])[0].tokens
        proceed.set()
        first._blocks[0]._tokens()
        assert np.array_equal(found, whole[40].tokens)

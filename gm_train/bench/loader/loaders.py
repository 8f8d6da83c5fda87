"""Loaders that are compared: what the process of each holds, and the turns that it takes."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from data_shards.counts.count_file import open_counts
from data_shards.errors import DataError
from data_shards.files.location import kvstore
from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan, choose_pool_blocks
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.bench.loader.peers import PEERS
from gm_train.bench.measure.footprint import Footprint
from gm_train.bench.rankings import Batcher
from gm_train.config.schema import DataConfig

OURS, CEILING = "gm-train", "chunks, read and dropped"
#: What is done with the counts that peers deliver; each is a race of its own.
COUNTS, BY_ROWS, BY_KERNEL = "counts", "tokens, ranked by numpy", "tokens, ranked by our kernel"
WAYS = (COUNTS, BY_ROWS, BY_KERNEL)
_READS = 16
#: Untimed turns of a peer, and cycles of our own: it ends amid a cycle, whose ends the pools may have in common.
_UNTIMED, _UNTIMED_CYCLES = 4, 1.5


class Batch(NamedTuple):
    """What a loader has delivered: cells, tokens and places for tokens."""

    cells: float
    tokens: int
    slots: int


@dataclass(frozen=True)
class LoaderCells:
    """The cells that all loaders read.

    Attributes:
        store: token store.
        h5ad: the same cells as counts; None without: then there are no peers.
        folder: for what is made of them.
    """

    store: Path
    h5ad: Path | None
    folder: Path


def default_plan(manifest: Manifest) -> RowPlan:
    """How a run with the default settings reads a store."""
    data = DataConfig()
    return RowPlan(0, data.lanes, choose_pool_blocks(manifest), data.group_cells, data.row_length)


def cycle_cells(manifest: Manifest) -> float:
    """Cells that `own_batches` delivers while each lane comes to the end of a pool and packs one, on average.

    Lanes may do so together, and deliver rows at many times the average speed in between: only over whole cycles is a
    speed one that lasts.
    """
    plan = default_plan(manifest)
    n_train = sum(data_set.n_train for data_set in manifest.datasets)
    return plan.lanes * plan.pool_blocks * n_train / sum(manifest.n_blocks)


def take_cells(batches: Iterator[Batch], n_cells: float) -> Batch:
    """Take batches until they hold `n_cells`, at least one: their sum."""
    cells, tokens, slots = next(batches)
    while cells < n_cells:
        batch = next(batches)
        cells, tokens, slots = cells + batch.cells, tokens + batch.tokens, slots + batch.slots
    return Batch(cells, tokens, slots)


def settle(batches: Iterator[Batch], manifest: Manifest) -> None:
    """Take untimed batches of `own_batches`: behind them any whole number of cycles is the same work."""
    take_cells(batches, _UNTIMED_CYCLES * cycle_cells(manifest))


def own_batches(cells: LoaderCells) -> Iterator[Batch]:
    """Packed rows of a step, in the order of a run with the default settings: tokens and segments, int64.

    They are laid out in the memory of the batch before the last one.
    """
    data = DataConfig()
    reader = StoreReader(cells.store, data.cache_mb << 20)
    plan = default_plan(reader.manifest)
    lanes = Lanes(reader, plan, dict.fromkeys(range(plan.lanes), (0, 0)))
    shape = plan.lanes * data.rows_per_lane, plan.row_length
    for memory in itertools.cycle([(np.empty(shape, np.int64), np.empty(shape, np.int64)) for _ in range(2)]):
        rows = lanes.take(data.rows_per_lane)
        ids, _ = rows.lay_out(plan.row_length, memory)
        yield Batch(len(rows.lengths), len(rows.tokens), ids.size)


def chunk_batches(cells: LoaderCells) -> Iterator[Batch]:
    """The inner chunks of tokens in random order, 16 reads in flight, as uint16 and otherwise left alone."""
    manifest = Manifest.load(cells.store)
    arrays: list[Any] = []
    chunks = []
    for number, entry in enumerate(manifest.datasets):
        path = cells.store / entry.name / "tokens"
        spec = {"driver": "zarr3", "kvstore": kvstore(path)}
        array: Any = ts.open(spec, read=True, open=True).result()
        size = int(array.chunk_layout.read_chunk.shape[0])
        chunks += [(number, start, min(start + size, entry.n_tokens)) for start in range(0, entry.n_tokens, size)]
        arrays.append(array)
    mean = manifest.n_tokens / manifest.n_cells
    rng = np.random.default_rng(0)
    while True:
        pending: list[Any] = []
        for place in rng.permutation(len(chunks)):
            number, start, stop = chunks[place]
            pending.append(arrays[number][start:stop].read())
            if len(pending) == _READS:
                n = len(pending.pop(0).result())
                yield Batch(n / mean, n, n)
        for read in pending:
            n = len(read.result())
            yield Batch(n / mean, n, n)


def peer_batches(cells: LoaderCells, name: str, way: str) -> Iterator[Batch]:
    """Batches of another loader, as counts or as padded tokens."""
    assert cells.h5ad is not None
    tokenizer = Tokenizer.load(cells.store)
    with open_counts(cells.h5ad) as counts:
        batcher = Batcher(tokenizer, tokenizer.bind(counts))
    peer = next(peer for peer in PEERS if peer.name == name)
    rank = {COUNTS: None, BY_ROWS: batcher.by_rows, BY_KERNEL: batcher.by_kernel}[way]
    for batch in peer.batches(cells.h5ad, cells.folder):
        n_tokens = int(np.minimum(np.diff(batch.indptr), tokenizer.top_k).sum())
        n_slots = n_tokens if rank is None else rank(batch).size
        yield Batch(batch.shape[0], n_tokens, n_slots)


class LoaderRunner:
    """A loader: what a worker holds.

    Args:
        cells: what it reads.
        name: `OURS`, `CEILING` or a peer's.
        turn_s: seconds of a step, at least; it ends with a whole batch, and that of `OURS` with a whole cycle.
    """

    def __init__(self, cells: LoaderCells, name: str, turn_s: float) -> None:
        self._cells, self._name, self._turn_s = cells, name, turn_s
        self._batches: Iterator[Batch] = iter(())
        self._manifest = Manifest.load(cells.store)
        self._unit = cycle_cells(self._manifest) if name == OURS else 0.0

    def use(self, way: str) -> float:
        """Begin anew, and take untimed batches, so that what is read ahead has come round once.

        Returns:
            Seconds until the first batch; of a peer's first start, with the copy of the cells that it wants.
        """
        start = time.perf_counter()
        if self._name == OURS:
            self._batches = own_batches(self._cells)
        elif self._name == CEILING:
            self._batches = chunk_batches(self._cells)
        else:
            self._batches = peer_batches(self._cells, self._name, way)
        first = next(self._batches)
        if not first.tokens:
            raise DataError("its first batch is empty")
        waited = time.perf_counter() - start
        if self._name == OURS:
            settle(self._batches, self._manifest)
        else:
            self.steps(_UNTIMED)
        return waited

    def steps(self, n: int) -> list[tuple[float, float, int, int]]:
        """Take steps: seconds, cells, tokens and slots of each."""
        taken = []
        for _ in range(n):
            start = time.perf_counter()
            cells, tokens, slots, units = 0.0, 0, 0, 0
            while (seconds := time.perf_counter() - start) < self._turn_s:
                units += 1
                part = take_cells(self._batches, units * self._unit - cells)
                cells, tokens, slots = cells + part.cells, tokens + part.tokens, slots + part.slots
            taken.append((seconds, cells, tokens, slots))
        return taken

    def peak_memory(self) -> int | None:
        """Most resident bytes of the process so far."""
        return Footprint.own()

"""The loaders that are compared, and the object that times each one in its worker process."""

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
#: The ways: what is done with the counts that peers deliver. Each is a separate race.
COUNTS, BY_ROWS, BY_KERNEL = "counts", "tokens, ranked by numpy", "tokens, ranked by our kernel"
WAYS = (COUNTS, BY_ROWS, BY_KERNEL)
_READS = 16
#: Untimed turns of a peer, and untimed cycles of our own loader: the half makes timing start in the middle of a cycle,
#: since all pools may end at the end of one.
_UNTIMED, _UNTIMED_CYCLES = 4, 1.5


class Batch(NamedTuple):
    """Size of what a loader has delivered: cells, real tokens, and slots for tokens (pads included)."""

    cells: float
    tokens: int
    slots: int


@dataclass(frozen=True)
class LoaderCells:
    """The cells that all loaders read.

    Attributes:
        store: token store.
        h5ad: the same cells as counts; with None, peers cannot take part.
        folder: for the copies of the cells that peers make.
    """

    store: Path
    h5ad: Path | None
    folder: Path


def default_plan(manifest: Manifest) -> RowPlan:
    """Return the plan of rows that a run with the default settings has for a store."""
    data = DataConfig()
    return RowPlan(0, data.lanes, choose_pool_blocks(manifest), data.group_cells, data.row_length)


def cycle_cells(manifest: Manifest) -> float:
    """Return the average number of cells in a cycle, in which each lane of `own_batches` uses up and packs one pool.

    Lanes may all pack at the same time, and deliver rows at many times the average speed in between. Only over whole
    cycles is a speed sustainable.
    """
    plan = default_plan(manifest)
    n_train = sum(data_set.n_train for data_set in manifest.datasets)
    return plan.lanes * plan.pool_blocks * n_train / sum(manifest.n_blocks)


def take_cells(batches: Iterator[Batch], n_cells: float) -> Batch:
    """Take at least one batch, until they hold `n_cells` together, and return their sum."""
    cells, tokens, slots = next(batches)
    while cells < n_cells:
        batch = next(batches)
        cells, tokens, slots = cells + batch.cells, tokens + batch.tokens, slots + batch.slots
    return Batch(cells, tokens, slots)


def settle(batches: Iterator[Batch], manifest: Manifest) -> None:
    """Take untimed batches of `own_batches`. After them, any whole number of cycles is the same amount of work."""
    take_cells(batches, _UNTIMED_CYCLES * cycle_cells(manifest))


def own_batches(cells: LoaderCells) -> Iterator[Batch]:
    """Yield packed rows of a step in the order of a run with the default settings: tokens and segments, int64.

    Two buffers are used in turn: a batch overwrites the one before the last.
    """
    data = DataConfig()
    reader = StoreReader(cells.store, data.cache_mb << 20)
    plan = default_plan(reader.manifest)
    lanes = Lanes(reader, plan, dict.fromkeys(range(plan.lanes), (0, 0)))
    shape = plan.lanes * data.fixed_rows_per_lane, plan.row_length
    for memory in itertools.cycle([(np.empty(shape, np.int64), np.empty(shape, np.int64)) for _ in range(2)]):
        rows = lanes.take(data.fixed_rows_per_lane)
        ids, _ = rows.lay_out(plan.row_length, memory)
        yield Batch(len(rows.lengths), len(rows.tokens), ids.size)


def chunk_batches(cells: LoaderCells) -> Iterator[Batch]:
    """Read the inner chunks of tokens in random order with 16 reads in flight; the uint16 tokens are dropped."""
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
        for index in rng.permutation(len(chunks)):
            number, start, stop = chunks[index]
            pending.append(arrays[number][start:stop].read())
            if len(pending) == _READS:
                n = len(pending.pop(0).result())
                yield Batch(n / mean, n, n)
        for read in pending:
            n = len(read.result())
            yield Batch(n / mean, n, n)


def peer_batches(cells: LoaderCells, name: str, way: str) -> Iterator[Batch]:
    """Yield batches of another loader, as counts or as padded tokens.

    Args:
        cells: the cells; `h5ad` is required.
        name: of the peer.
        way: one of `WAYS`.
    """
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
    """A loader, timed in a worker process.

    Args:
        cells: the cells that it reads.
        name: `OURS`, `CEILING` or a peer's name.
        turn_s: least seconds of a turn; a turn ends after a whole batch, a turn of `OURS` after a whole cycle.
    """

    def __init__(self, cells: LoaderCells, name: str, turn_s: float) -> None:
        self._cells, self._name, self._turn_s = cells, name, turn_s
        self._batches: Iterator[Batch] = iter(())
        self._manifest = Manifest.load(cells.store)
        self._unit = cycle_cells(self._manifest) if name == OURS else 0.0

    def use(self, way: str) -> float:
        """Restart the loader and take untimed batches, until those that were read ahead at the start are used up.

        Returns:
            Seconds to the first batch. At a peer's first start they include its copy of the cells.
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
        """Take n turns and return the seconds, cells, tokens and slots of each."""
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
        """Return the most resident bytes of the process so far, or None if the system does not report them."""
        return Footprint.own()

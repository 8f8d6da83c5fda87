"""Lanes: streams of packed rows that training reads, and that can start at any position.

Lane v of V owns the places q with q mod V = v of the store's block order. It takes its places in pools of G. The
training cells of a pool are permuted and cut into groups, and each group is packed into rows. So (lane, pool, row)
names the same cells on every machine, for any number of ranks and loader workers. The position of a run is this
triple for each lane.

    reader = StoreReader("store.zarr")
    plan = RowPlan(seed=0, lanes=4, pool_blocks=8, group_cells=512, row_length=2048)
    lanes = Lanes(reader, plan, {lane: (0, 0) for lane in range(4)})
    rows = lanes.take(6)               # the next 6 rows of each lane
    ids, segment = rows.lay_out(2048)  # int64 (24, 2048)
"""

import mmap
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.hashing import fold
from data_shards.rows.block_order import BlockOrder
from data_shards.rows.packing import copy_rows
from data_shards.rows.pool import RowPlan, Rows, pack_pool
from data_shards.rows.store_reader import Block, PendingBlocks, StoreReader
from data_shards.store.manifest import TRAIN, VALIDATION

#: Limit of the blocks that a process reads ahead.
AHEAD_BYTES = 96 << 20
_PURPOSE_VALIDATION = 13
_BLOCKS_AT_ONCE = 32
_AHEAD = 0.75  # share of a pool's rows after which even the last lane has begun to read its next pool
_AGAIN = 16  # rows after which a lane checks again if there was no memory for its next pool
_AT_ONCE = 8  # lanes whose pools are read together if none was read ahead
_NEVER = 1 << 62
I64 = npt.NDArray[np.int64]


class Lanes:
    """The rows of some lanes, each from a position on.

    A lane starts to read its next pool while rows of the present one are left. All lanes reach the end of their pools
    at about the same time, so their starts are staggered: lane v starts when v / V of three quarters of its rows are
    taken. Memory holds the training cells of one pool for each lane, and at most `ahead_bytes` of blocks (a few more
    if a lane has to wait).

    Args:
        reader: reader of the store.
        plan: the plan that, with the store, fixes the order.
        positions: lane -> (pool, row) of its next row. `row` may equal the pool's number of rows: then the next row is
            the first of the next pool that has any.
        ahead_bytes: limit of the blocks that are read ahead, in bytes.

    Attributes:
        order: which block is at the place of a cell.

    Raises:
        DataError: the plan weighs a data set that the store does not have, or there are no training cells.
    """

    def __init__(
        self,
        reader: StoreReader,
        plan: RowPlan,
        positions: Mapping[int, tuple[int, int]],
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self._reader, self._plan, self._ahead_bytes = reader, plan, ahead_bytes
        self.order = block_order(reader, plan)
        self._lanes = sorted(positions)
        self._pool = np.array([positions[lane][0] for lane in self._lanes], np.int64)
        self._row = np.array([positions[lane][1] for lane in self._lanes], np.int64)
        self._next: list[PendingBlocks | None] = [None] * len(self._lanes)
        self._n_rows = np.full(len(self._lanes), -1)  # rows of the pool; -1: not read yet
        self._look_at = np.full(len(self._lanes), _NEVER)  # row at which to work on reading the next pool
        self._buffers = [np.empty(0, np.uint16)] * len(self._lanes)  # memory for the tokens of each lane's pool
        # What the pools hold: each lane's in its own arrays, and their addresses, from which `copy_rows` takes a step.
        self._cells = [np.empty((0, 4), np.int64)] * len(self._lanes)
        self._ends = [np.empty((0, 2), np.int64)] * len(self._lanes)
        self._pools = np.zeros((len(self._lanes), 3), np.int64)

    @property
    def positions(self) -> dict[int, tuple[int, int]]:
        """(pool, row) of the next row of each lane."""
        return dict(zip(self._lanes, zip(self._pool.tolist(), self._row.tolist(), strict=True), strict=True))

    def take(self, n_rows: int) -> Rows:
        """Take the next `n_rows` rows of each lane, lane after lane, and move the positions past them.

        Raises:
            DataError: a chunk cannot be read.
        """
        parts = []
        done = 0
        across = np.flatnonzero(self._row + n_rows > self._n_rows).tolist()
        for number, i in enumerate(across):
            for j in across[number : number + _AT_ONCE]:
                if self._next[j] is None:
                    self._next[j] = self._begin(j, int(self._pool[j]) + (self._n_rows[j] >= 0))
            parts += [self._copy(done, i, n_rows), *self._take_across(i, n_rows)]
            done = i + 1
        parts.append(self._copy(done, len(self._lanes), n_rows))
        if look := np.flatnonzero(self._row >= self._look_at).tolist():
            n_ahead = sum(pending is not None for pending in self._next)
            for i in look:
                n_ahead += self._look_ahead(i, n_ahead)
        return Rows.join(parts)

    def _copy(self, first: int, stop: int, n_rows: int) -> Rows:
        """The next `n_rows` rows of lanes [first, stop), whose pools hold that many."""
        lanes = slice(first, stop)
        rows = Rows(*copy_rows(self._row[lanes], n_rows, self._pools[lanes]))
        self._row[lanes] += n_rows
        return rows

    def _take_across(self, i: int, n_rows: int) -> list[Rows]:
        """The next `n_rows` rows of one lane, from as many pools as needed."""
        parts = []
        while n_rows:
            if self._n_rows[i] < 0:
                self._enter(i)
            left = min(n_rows, int(self._n_rows[i] - self._row[i]))
            if left > 0:
                parts.append(self._copy(i, i + 1, left))
                n_rows -= left
            if n_rows:
                self._pool[i] += 1
                self._row[i] = 0
                self._n_rows[i] = -1
        return parts

    def _places(self, i: int, pool: int) -> I64:
        plan = self._plan
        return (pool * plan.pool_blocks + np.arange(plan.pool_blocks)) * plan.lanes + self._lanes[i]

    def _begin(self, i: int, pool: int) -> PendingBlocks:
        return self._reader.begin(self.order.blocks(self._places(i, pool)).tolist())

    def _enter(self, i: int) -> None:
        """Read the pool of a lane's position, and set when to begin with the next one."""
        pool, lane, plan = int(self._pool[i]), self._lanes[i], self._plan
        pending, self._next[i] = self._next[i] or self._begin(i, pool), None
        key = fold(plan.seed, lane, pool)
        rows = pack_pool(
            pending.wait(), self._places(i, pool), TRAIN, plan, key, room=lambda n_tokens: self._room(i, n_tokens)
        )
        pending.release()
        columns = (rows.lengths, rows.places, rows.cells, rows.damaged)
        cells = np.cumsum(rows.cells_of_row)
        ends = np.zeros((len(rows) + 1, 2), np.int64)
        ends[1:, 0] = cells
        ends[1:, 1] = np.cumsum(rows.lengths)[cells - 1]
        self._cells[i] = np.column_stack([column.astype(np.int64) for column in columns])
        self._ends[i] = ends
        self._pools[i] = [of_lane[i].ctypes.data for of_lane in (self._buffers, self._cells, self._ends)]
        self._n_rows[i] = len(rows)
        self._look_at[i] = int(len(rows) * _AHEAD * lane / plan.lanes)

    def _room(self, i: int, n_tokens: int) -> npt.NDArray[np.uint16]:
        """Memory for the tokens of a lane's pool: that of its last pool if the size is about right."""
        if not n_tokens <= len(self._buffers[i]) <= n_tokens + n_tokens // 4:
            self._buffers[i] = np.empty(0, np.uint16)
            # mmap returns the memory to the system: pools of many sizes would leave holes on the heap.
            # Slightly more than needed, or every other pool would not fit into the memory of the one before.
            size = n_tokens + n_tokens // 16
            self._buffers[i] = np.frombuffer(mmap.mmap(-1, 2 * max(1, size)), np.uint16)
        return self._buffers[i][:n_tokens]

    def _look_ahead(self, i: int, n_ahead: int) -> bool:
        """Begin or continue to read a lane's next pool. Returns whether one more than `n_ahead` is now being read."""
        pending = self._next[i]
        if pending is not None:
            if pending.advance():
                self._look_at[i] = _NEVER
            return False
        if (n_ahead + 1) * self._buffers[i].nbytes > self._ahead_bytes:
            self._look_at[i] = self._row[i] + _AGAIN
            return False
        self._next[i] = self._begin(i, int(self._pool[i]) + 1)
        self._look_at[i] = self._row[i] + 1
        return True


def block_order(reader: StoreReader, plan: RowPlan) -> BlockOrder:
    """The order of a store's blocks under a plan.

    Raises:
        DataError: the plan weighs a data set that the store does not have, or there are no training cells.
    """
    datasets = reader.manifest.datasets
    names = [entry.name for entry in datasets]
    if unknown := [name for name in plan.weights if name not in names]:
        raise DataError(f"{reader.path}: no data set {', '.join(unknown)} to weigh: it has {', '.join(names)}")
    weights = [plan.weights.get(name, 1) for name in names]
    if sum(entry.n_train for entry, weight in zip(datasets, weights, strict=True) if weight) == 0:
        among = " in the data sets with a weight above 0" if plan.weights else ""
        raise DataError(
            f"{reader.path}: no training cells{among}: build it with a smaller --validation and --test share"
        )
    return BlockOrder(plan.seed, reader.manifest.hash, reader.manifest.n_blocks, weights)


def validation_rows(reader: StoreReader, plan: RowPlan, max_cells: int) -> Rows:
    """Rows of validation cells. They depend on the store and the plan only, and not on its weights.

    Blocks of data sets with validation cells are visited in a separate order until `max_cells` such cells are found;
    the last block is cut.

    Args:
        reader: reader of the store.
        plan: how cells are packed; its seed fixes the order.
        max_cells: maximum number of cells.

    Returns:
        The rows; no rows if the store has no validation cells.
    """
    wanted = min(max_cells, sum(data_set.n_validation for data_set in reader.manifest.datasets))
    if wanted == 0:
        return Rows.join([])
    order = validation_order(reader, plan.seed)
    found: list[Block] = []
    places: list[int] = []
    n_found = 0
    for first in range(0, order.size, _BLOCKS_AT_ONCE):
        if n_found >= wanted:
            break
        visited = np.arange(first, min(first + _BLOCKS_AT_ONCE, order.size))
        for place, block in zip(visited.tolist(), reader.read(order.blocks(visited).tolist()), strict=True):
            if n := int((block.split == VALIDATION).sum()):
                found.append(_held_out(block))
                places.append(place)
                n_found += n
    key = fold(plan.seed, _PURPOSE_VALIDATION)
    return pack_pool(found, np.array(places), VALIDATION, plan, key, most=wanted)


def validation_order(reader: StoreReader, seed: int) -> BlockOrder:
    """The order in which `validation_rows` visits the blocks of the data sets that have validation cells.

    Raises:
        ValueError: there are no validation cells.
    """
    manifest = reader.manifest
    holds_out = [int(data_set.n_validation > 0) for data_set in manifest.datasets]
    return BlockOrder(fold(seed, _PURPOSE_VALIDATION), manifest.hash, manifest.n_blocks, holds_out)


def _held_out(block: Block) -> Block:
    """The block with the tokens of its validation cells only: many blocks are visited, and each may have few."""
    held_out = block.split == VALIDATION
    lengths = np.diff(block.indptr)
    indptr = np.concatenate([np.zeros(1, np.int64), np.where(held_out, lengths, 0).cumsum()])
    return Block(block.tokens[np.repeat(held_out, lengths)], indptr, block.split, block.damaged)

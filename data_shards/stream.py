"""Lanes: the position-addressed streams of packed rows that training reads.

Lane v of V owns the places q with q mod V = v of the store's block order. Its places are taken in pools of G; the
training cells of a pool are permuted, cut into groups, and each group is packed into rows. So (lane, pool, row)
names the same cells on every machine, for any number of ranks and loader workers: that triple, for each lane, is the
position of a run.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.hashing import fold, mix64
from data_shards.manifest import TRAIN, VALIDATION
from data_shards.order import BlockOrder
from data_shards.packing import pack
from data_shards.reader import Block, StoreReader

_PURPOSE_CELLS, _PURPOSE_ROWS, _PURPOSE_VALIDATION = 11, 12, 13
_BLOCKS_AT_ONCE = 32
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Whole cells that stand in one row.

    Attributes:
        tokens: uint16 (n_tokens,), cells one after another.
        lengths: int64 (n_cells,), tokens of each.
        places: int64 (n_cells,), place of each cell's block in the order.
        cells: int64 (n_cells,), each cell's number within its block.
    """

    tokens: npt.NDArray[np.uint16]
    lengths: I64
    places: I64
    cells: I64


@dataclass(frozen=True)
class Plan:
    """What fixes the order besides the store.

    Attributes:
        seed: the run's seed.
        lanes: V.
        pool_blocks: G, places that are shuffled together.
        group_cells: W, cells that are packed together, about.
        row_length: tokens of a row.
    """

    seed: int
    lanes: int
    pool_blocks: int
    group_cells: int
    row_length: int


def _gather(blocks: list[Block], places: list[int], split: int) -> tuple[list[npt.NDArray[np.uint16]], I64, I64]:
    """Tokens, place and number in the block of every cell of one split."""
    tokens: list[npt.NDArray[np.uint16]] = []
    place_of: list[int] = []
    cell_of: list[int] = []
    for block, place in zip(blocks, places, strict=True):
        for cell in np.flatnonzero(block.split == split):
            tokens.append(block.tokens[block.indptr[cell] : block.indptr[cell + 1]])
            place_of.append(place)
            cell_of.append(int(cell))
    return tokens, np.array(place_of, dtype=np.int64), np.array(cell_of, dtype=np.int64)


def pack_cells(tokens: list[npt.NDArray[np.uint16]], places: I64, cells: I64, plan: Plan, key: int) -> list[Row]:
    """Permute cells, cut them into near-equal groups, pack each group, permute its rows."""
    if not tokens:
        return []
    lengths = np.array([len(cell) for cell in tokens], dtype=np.int64)
    hashes = mix64(mix64(places.astype(np.uint64) ^ np.uint64(fold(key, _PURPOSE_CELLS))) ^ cells.astype(np.uint64))
    shuffled = np.argsort(hashes, kind="stable")
    n_groups = max(1, round(len(tokens) / plan.group_cells))
    rows: list[Row] = []
    for number, group in enumerate(np.array_split(shuffled, n_groups)):
        packed = pack(lengths[group], plan.row_length)
        row_key = np.uint64(fold(key, _PURPOSE_ROWS, number))
        for index in np.argsort(mix64(np.arange(len(packed), dtype=np.uint64) ^ row_key), kind="stable"):
            members = group[packed[index]]
            rows.append(
                Row(np.concatenate([tokens[i] for i in members]), lengths[members], places[members], cells[members])
            )
    return rows


class LaneStream:
    """The rows of one lane, from a position on.

    Attributes:
        pool, row: the position of the next row. `row` may equal the pool's number of rows: then the next row is the
            first of the next pool that has any.
    """

    def __init__(self, reader: StoreReader, plan: Plan, lane: int, pool: int = 0, row: int = 0) -> None:
        if sum(data_set.n_train for data_set in reader.manifest.datasets) == 0:
            raise DataError(f"{reader.path}: no training cells: build it with a smaller --validation and --test share")
        self._reader = reader
        self._plan = plan
        self._order = BlockOrder(plan.seed, reader.manifest.hash, reader.n_blocks)
        self.lane = lane
        self.pool = pool
        self.row = row
        self._rows: list[Row] | None = None

    def _read_pool(self) -> list[Row]:
        plan = self._plan
        first = self.pool * plan.pool_blocks
        places = [u * plan.lanes + self.lane for u in range(first, first + plan.pool_blocks)]
        blocks = self._reader.read([self._order.block(place) for place in places])
        return pack_cells(*_gather(blocks, places, TRAIN), plan, fold(plan.seed, self.lane, self.pool))

    def take(self, n_rows: int) -> list[Row]:
        """The next `n_rows` rows; moves the position behind them."""
        taken: list[Row] = []
        while len(taken) < n_rows:
            if self._rows is None:
                self._rows = self._read_pool()
            if self.row >= len(self._rows):
                self.pool, self.row, self._rows = self.pool + 1, 0, None
                continue
            taken.append(self._rows[self.row])
            self.row += 1
        return taken


def validation_rows(reader: StoreReader, plan: Plan, max_cells: int) -> list[Row]:
    """Rows of held-out cells, a function of the store and the plan.

    Blocks are visited in an order of their own until `max_cells` validation cells are found (the last block is cut).
    Empty if the store holds out none.
    """
    key = fold(plan.seed, _PURPOSE_VALIDATION)
    wanted = min(max_cells, sum(data_set.n_validation for data_set in reader.manifest.datasets))
    order = BlockOrder(key, reader.manifest.hash, reader.n_blocks)
    tokens: list[npt.NDArray[np.uint16]] = []
    place_parts: list[I64] = []
    cell_parts: list[I64] = []
    for first in range(0, reader.n_blocks, _BLOCKS_AT_ONCE):
        if len(tokens) >= wanted:
            break
        places = list(range(first, min(first + _BLOCKS_AT_ONCE, reader.n_blocks)))
        found = _gather(reader.read([order.block(place) for place in places]), places, VALIDATION)
        tokens += found[0]
        place_parts.append(found[1])
        cell_parts.append(found[2])
    if not tokens:
        return []
    return pack_cells(
        tokens[:wanted], np.concatenate(place_parts)[:wanted], np.concatenate(cell_parts)[:wanted], plan, key
    )

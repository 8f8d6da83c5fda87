"""Pools: the cells of some blocks, permuted and packed into rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from data_shards.hashing import fold, mix64
from data_shards.rows.packing import arrange, copy_cells, lay_out, select_cells
from data_shards.rows.store_reader import Block
from data_shards.store.manifest import Manifest

_PURPOSE_CELLS, _PURPOSE_ROWS = 11, 12
_POOL_TOKENS = 1 << 20  # 2 MiB
_POOL_CELLS = 8192
I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Rows:
    """Whole cells, packed into rows.

    Attributes:
        tokens: uint16 (n_tokens,), cells one after another, row by row; `<pad>` throughout a damaged cell.
        lengths: int64 (n_cells,), tokens of each cell.
        places: int64 (n_cells,), place of each cell's block in the order.
        cells: int64 (n_cells,), each cell's number in its block.
        damaged: bool (n_cells,), cells whose tokens are lost; they keep their slots.
        cells_of_row: int64 (n_rows,), number of cells of each row.
    """

    tokens: U16
    lengths: I64
    places: I64
    cells: I64
    damaged: npt.NDArray[np.bool_]
    cells_of_row: I64

    @classmethod
    def join(cls, parts: "Sequence[Rows]") -> "Rows":
        """Concatenate rows."""
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:
            return parts[0]
        if not parts:
            none = np.empty(0, np.int64)
            return cls(np.empty(0, np.uint16), none, none, none, np.empty(0, bool), none)
        return cls(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(cls)))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.cells_of_row)

    def part(self, first: int, stop: int) -> "Rows":
        """Rows [first, stop)."""
        cell = int(self.cells_of_row[:first].sum())
        cells = slice(cell, cell + int(self.cells_of_row[first:stop].sum()))
        token = int(self.lengths[:cell].sum())
        return Rows(
            self.tokens[token : token + int(self.lengths[cells].sum())],
            self.lengths[cells],
            self.places[cells],
            self.cells[cells],
            self.damaged[cells],
            self.cells_of_row[first:stop],
        )

    def lay_out(self, row_length: int, out: tuple[I64, I64] | None = None) -> tuple[I64, I64]:
        """Write the rows into matrices of tokens and segments.

        Args:
            row_length: tokens of a row.
            out: the matrices to write into; reused memory is written many times as fast as new memory.

        Returns:
            Tokens, 0 on the unused tail, and segments, 1 … n for the cells of a row and 0 on the tail; both int64
            (n_rows, row_length).
        """
        shape = len(self), row_length
        ids, segment = out or (np.empty(shape, np.int64), np.empty(shape, np.int64))
        lay_out(self.tokens, self.lengths, self.cells_of_row, ids, segment)
        return ids, segment


@dataclass(frozen=True)
class RowPlan:
    """Settings that, with the store, fix the order of the rows.

    Attributes:
        seed: the run's seed.
        lanes: V, the number of lanes.
        pool_blocks: G, number of places that are shuffled together.
        group_cells: W, approximate number of cells that are packed together.
        row_length: tokens of a row.
        weights: how often the blocks of a data set occur in a pass; those of data sets not named occur once.
    """

    seed: int
    lanes: int
    pool_blocks: int
    group_cells: int
    row_length: int
    weights: Mapping[str, int] = field(default_factory=dict)


def choose_pool_blocks(manifest: Manifest) -> int:
    """Number of blocks of a pool: about a million tokens, at most 8,192 cells, at most the blocks of the store.

    A million tokens are some hundreds of cells, enough to fill rows of 2,048 tokens to 97 %. They take 2 MiB, and each
    of 192 lanes holds one pool. A cell takes 32 bytes besides its tokens, so the number of short cells is limited too.
    """
    block_tokens = manifest.block_cells * manifest.n_tokens / manifest.n_cells
    n_blocks = min(round(_POOL_TOKENS / block_tokens), _POOL_CELLS // manifest.block_cells)
    return min(sum(manifest.n_blocks), max(1, n_blocks))


def pack_pool(
    blocks: Sequence[Block],
    places: I64,
    split: int,
    plan: RowPlan,
    key: int,
    most: int | None = None,
    longest: int | None = None,
    room: Callable[[int], U16] = lambda n_tokens: np.empty(n_tokens, np.uint16),
) -> Rows:
    """Permute the cells of blocks, cut them into groups of about `plan.group_cells`, and pack each group into rows.

    Args:
        blocks: the blocks.
        places: int64 (n_blocks,), the place of each block in the order.
        split: split of the cells that are taken.
        plan: how cells are packed.
        key: key of the shuffles.
        most: maximum number of cells, in the order of the blocks; None: all.
        longest: maximum number of best-ranked genes of a cell; None: all.
        room: returns memory for a number of tokens, uint16.
    """
    n_cells = np.array([len(block.split) for block in blocks], np.int64)
    indptr = np.concatenate([block.indptr for block in blocks])
    splits = np.concatenate([block.split for block in blocks])
    block_of, cell_of, starts, lengths, first = select_cells(indptr, splits, n_cells, split)
    if most is not None:
        block_of, cell_of, starts, lengths = (of_cells[:most] for of_cells in (block_of, cell_of, starts, lengths))
        first = np.minimum(first, most)
    if longest is not None:
        lengths = np.minimum(lengths, longest)
    place_of = places[block_of]
    cell_key = np.uint64(fold(key, _PURPOSE_CELLS))
    hashes = mix64(mix64(place_of.astype(np.uint64) ^ cell_key) ^ cell_of.astype(np.uint64))
    n_groups = max(1, round(len(lengths) / plan.group_cells))
    row_keys = np.array([fold(key, _PURPOSE_ROWS, number) for number in range(n_groups)], np.uint64)
    order, cells_of_row = arrange(lengths, hashes, row_keys, plan.row_length)

    lengths, place_of, cell_of, block_of, starts = (
        of_cells[order] for of_cells in (lengths, place_of, cell_of, block_of, starts)
    )
    tokens = room(int(lengths.sum()))
    to = np.cumsum(lengths) - lengths
    by_block = np.argsort(block_of, kind="stable")
    for block, start, stop in zip(blocks, first[:-1].tolist(), first[1:].tolist(), strict=True):
        copy_cells(block.tokens, starts, lengths, to, by_block[start:stop], tokens)
    damaged = np.zeros(len(order), bool)
    if any(block.damaged is not None for block in blocks):
        flags = [np.zeros(n, bool) if b.damaged is None else b.damaged for b, n in zip(blocks, n_cells, strict=True)]
        damaged = np.concatenate(flags)[(np.cumsum(n_cells) - n_cells)[block_of] + cell_of]
    return Rows(tokens, lengths, place_of, cell_of, damaged, cells_of_row)

"""All cells of a store in its order, as batches with the cells' names; for predictions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.files.location import open_file
from data_shards.rows.pool import Rows
from data_shards.rows.store_reader import Block, StoreReader
from data_shards.store.manifest import DatasetEntry
from data_shards.store.obs_parquet import CELL_ID, read_column
from gm_train.ranks.ranks import Ranks

_SPLITS = ("train", "validation", "test")


@dataclass
class CellBatch:
    """The cells of a block, packed into rows in their order.

    Attributes:
        input_ids: int64 (rows, length), 0 on the unused tail.
        segment: int64 (rows, length), 1 … n for the cells of a row, 0 on the unused tail.
        data_set: name of their data set.
        row: int64 (n_cells,), row of each cell in its data set.
        cell_id: name of each cell in its count file.
        split: train, validation or test, for each cell.
        counts: False if another rank has this batch too: then its result is not kept.
    """

    input_ids: Tensor
    segment: Tensor
    data_set: str
    row: Tensor
    cell_id: list[str]
    split: list[str]
    counts: bool


class CellBatches:
    """The blocks of a store as batches; rank r of K has the blocks b with b mod K = r. Each rank has as many.

    Cells without tokens and damaged cells are left out.

    Args:
        reader: of the store.
        row_length: tokens of a row.
        ranks: this process among the others.
    """

    def __init__(self, reader: StoreReader, row_length: int, ranks: Ranks) -> None:
        self._reader, self._row_length, self._ranks = reader, row_length, ranks

    def __len__(self) -> int:
        """Number of batches of each rank."""
        return -(-sum(self._reader.manifest.n_blocks) // self._ranks.world_size)

    def __iter__(self) -> Iterator[CellBatch]:
        manifest = self._reader.manifest
        n_blocks = sum(manifest.n_blocks)
        ends = np.cumsum(manifest.n_blocks)
        names: _CellIds | None = None
        for turn in range(len(self)):
            own = turn * self._ranks.world_size + self._ranks.global_rank
            number = min(own, n_blocks - 1)
            which = int(np.searchsorted(ends, number, side="right"))
            entry = manifest.datasets[which]
            if names is None or names.entry is not entry:
                names = _CellIds(self._reader, entry)
            start = (number - int(ends[which]) + manifest.n_blocks[which]) * manifest.block_cells
            (block,) = self._reader.read([number])
            yield self._batch(block, entry.name, start, names, own < n_blocks)

    def _batch(self, block: Block, data_set: str, start: int, names: "_CellIds", counts: bool) -> CellBatch:
        lengths = np.diff(block.indptr)
        kept = lengths > 0 if block.damaged is None else (lengths > 0) & ~block.damaged
        cells = np.flatnonzero(kept)
        rows = Rows(
            block.tokens[np.repeat(kept, lengths)],
            lengths[cells],
            np.zeros(len(cells), np.int64),
            cells,
            np.zeros(len(cells), bool),
            _fill(lengths[cells], self._row_length),
        )
        if len(rows):
            input_ids, segment = rows.lay_out(self._row_length)
        else:  # all ranks gather sharded layers together: this one must run a pass too
            input_ids = segment = np.zeros((1, self._row_length), np.int64)
        ids = names.read(start, start + len(lengths))
        return CellBatch(
            torch.from_numpy(input_ids),
            torch.from_numpy(segment),
            data_set,
            torch.from_numpy(start + cells),
            [ids[cell] for cell in cells],
            [_SPLITS[block.split[cell]] for cell in cells],
            counts,
        )


def _fill(lengths: npt.NDArray[np.int64], row_length: int) -> npt.NDArray[np.int64]:
    """Fill rows with cells in their order: number of cells of each row, int64 (n_rows,)."""
    cells_of_row: list[int] = []
    room = 0
    for length in lengths.tolist():
        if length > room:
            cells_of_row.append(0)
            room = row_length
        cells_of_row[-1] += 1
        room -= length
    return np.array(cells_of_row, np.int64)


class _CellIds:
    """The names of the cells of a data set, read forward only: at most a batch of the file is held."""

    def __init__(self, reader: StoreReader, entry: DatasetEntry) -> None:
        self.entry = entry
        self._parts = self._read(reader)
        self._first = self._end = 0
        self._ids: list[str] = []

    def _read(self, reader: StoreReader) -> Iterator[list[str]]:
        with open_file(reader.path / self.entry.name / "obs.parquet") as file:
            for part in read_column(file, CELL_ID):
                yield part.astype(str).tolist()

    def read(self, start: int, stop: int) -> list[str]:
        """Names of the cells [start, stop); `start` must not decrease."""
        while self._end < stop:
            kept = self._ids[max(0, start - self._first) :]
            part = next(self._parts)
            self._ids = kept + part
            self._end += len(part)
            self._first = self._end - len(self._ids)
        return self._ids[start - self._first : stop - self._first]

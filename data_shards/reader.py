"""Blocks of a token store, read as slices through TensorStore."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from data_shards.arrays import StoredArray, open_array
from data_shards.errors import DataError
from data_shards.manifest import Manifest


@dataclass(frozen=True)
class Block:
    """Consecutive cells of one data set.

    Attributes:
        tokens: uint16 (n_tokens,), cells one after another, best-ranked gene first.
        indptr: int64 (n_cells + 1,), where each cell begins in `tokens`.
        split: uint8 (n_cells,), 0 training, 1 validation, 2 test.
    """

    tokens: npt.NDArray[np.uint16]
    indptr: npt.NDArray[np.int64]
    split: npt.NDArray[np.uint8]


class StoreReader:
    """Reads blocks by number, counted through all data sets of a store in the order of its manifest.

    Only chunks that a block touches are read, through one bounded cache; neither `indptr` nor `split` is ever held
    whole.

    Args:
        path: the store.
        cache_bytes: limit of the chunk cache.

    Raises:
        DataError: no store, or one that is damaged.
    """

    def __init__(self, path: str | Path, cache_bytes: int = 256 << 20) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
        self._arrays: dict[tuple[str, str], StoredArray] = {}
        per_block = self.manifest.block_cells
        counts = [-(-data_set.n_cells // per_block) for data_set in self.manifest.datasets]
        self._first_block = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def n_blocks(self) -> int:
        return int(self._first_block[-1])

    def _array(self, data_set: str, name: str) -> StoredArray:
        key = (data_set, name)
        if key not in self._arrays:
            self._arrays[key] = open_array(self.path, data_set, name, self._context)
        return self._arrays[key]

    def read(self, blocks: list[int]) -> list[Block]:
        """Read blocks, all at once (two rounds of concurrent reads: where the cells lie, then their tokens)."""
        found = []
        for number in blocks:
            which = int(np.searchsorted(self._first_block, number, side="right")) - 1
            data_set = self.manifest.datasets[which]
            start = (number - int(self._first_block[which])) * self.manifest.block_cells
            stop = min(start + self.manifest.block_cells, data_set.n_cells)
            found.append(
                (
                    data_set.name,
                    self._array(data_set.name, "indptr").begin(start, stop + 1),
                    self._array(data_set.name, "split").begin(start, stop),
                )
            )
        pending = []
        for name, wait_for_indptr, wait_for_split in found:
            indptr = wait_for_indptr().astype(np.int64)
            if np.any(np.diff(indptr) < 0):
                raise DataError(f"{self.path / name / 'indptr'}: decreases, so it is damaged; build the store again")
            wait_for_tokens = self._array(name, "tokens").begin(int(indptr[0]), int(indptr[-1]))
            pending.append((indptr, wait_for_split, wait_for_tokens))
        return [
            Block(
                wait_for_tokens().astype(np.uint16, copy=False),
                indptr - indptr[0],
                wait_for_split().astype(np.uint8, copy=False),
            )
            for indptr, wait_for_split, wait_for_tokens in pending
        ]

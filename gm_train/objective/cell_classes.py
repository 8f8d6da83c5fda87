"""The class of every cell of a store, for a run that learns a label."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.store.manifest import Manifest
from gm_train.model.classes import Classes

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CellClasses:
    """The class of every cell, by its place in the store.

    Attributes:
        classes: the classes that the run learns.
        numbers: int16 or int32 (n_cells,), the cells of the first data set, then those of the second, and so on: the
            number of the class; -1 for a cell that is not used; the number of classes for a held-out cell with a label
            that is not learned.
        first_cell: int64 (n_blocks,), the place in `numbers` of the first cell of each block.
    """

    classes: Classes
    numbers: npt.NDArray[np.int16] | npt.NDArray[np.int32]
    first_cell: I64

    def of(self, blocks: I64, cells: I64) -> I64:
        """The class of some cells.

        Args:
            blocks: int64 (n,), number of each cell's block, counted across all data sets.
            cells: int64 (n,), each cell's number in its block.

        Returns:
            int64 (n,), as in `numbers`.
        """
        return np.asarray(self.numbers[self.first_cell[blocks] + cells], np.int64)


def first_cells(manifest: Manifest) -> I64:
    """The number of the first cell of each block, cells counted across all data sets: int64 (n_blocks,)."""
    n_cells = np.array([entry.n_cells for entry in manifest.datasets], np.int64)
    starts = np.cumsum(n_cells) - n_cells
    parts = [
        start + np.arange(n, dtype=np.int64) * manifest.block_cells
        for start, n in zip(starts, manifest.n_blocks, strict=True)
    ]
    return np.concatenate(parts)

"""Turning counts that are stored by gene (CSC) into counts by cell, in bounded memory.

One pass over the file deals its entries out to temporary files of a few thousand cells each; a range of cells is
then put together from the files that it touches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from data_shards.errors import DataError

_CELLS = 4096
#: Entries of the file that are held at a time.
_ENTRIES = 1 << 23
_ENTRY = np.dtype([("cell", np.uint16), ("gene", np.int32), ("count", np.float64)])


@dataclass(frozen=True)
class CellMajorCopy:
    """A copy by cell in a temporary folder, which whoever made it removes."""

    path: Path
    n_cells: int
    n_genes: int

    def rows(self, first: int, last: int) -> sp.csr_matrix:
        """Counts of cells [first, last): csr_matrix (last - first, n_genes), float64, indices sorted."""
        parts = []
        for bucket in range(first // _CELLS, -(-last // _CELLS)):
            file = self.path / str(bucket)
            entries = np.fromfile(file, _ENTRY) if file.exists() else np.empty(0, _ENTRY)
            size = min(_CELLS, self.n_cells - bucket * _CELLS)
            triple = (entries["count"], (entries["cell"].astype(np.int32), entries["gene"]))
            # Conversion from coordinates sorts by cell, keeps the order of genes and sums what stands twice.
            part = sp.csr_matrix(triple, (size, self.n_genes))
            low, high = max(first - bucket * _CELLS, 0), min(last - bucket * _CELLS, size)
            parts.append(part[low:high])
        counts = sp.vstack(parts, format="csr") if len(parts) > 1 else parts[0]
        counts.sort_indices()
        return counts


def copy_by_cell(matrix: Any, n_cells: int, n_genes: int, path: Path, folder: Path) -> CellMajorCopy:
    """Deal the entries of a CSC group (`data`, `indices`, `indptr`) of the file `path` out to files in `folder`.

    Raises:
        DataError: the matrix is damaged, or the folder's disk is full.
    """
    indptr = np.asarray(matrix["indptr"][:]).astype(np.int64)
    n_entries = int(indptr[-1])
    if len(indptr) != n_genes + 1 or np.any(np.diff(indptr) < 0) or matrix["indices"].shape[0] < n_entries:
        raise DataError(f"{path}: the column pointers are damaged: fetch it again")
    for first in range(0, n_entries, _ENTRIES):
        last = min(first + _ENTRIES, n_entries)
        cells = np.asarray(matrix["indices"][first:last]).astype(np.int64)
        if cells.min() < 0 or cells.max() >= n_cells:
            raise DataError(f"{path}: a row index is outside the matrix: fetch it again")
        entries = np.empty(last - first, _ENTRY)
        entries["cell"] = cells % _CELLS
        entries["gene"] = np.searchsorted(indptr, np.arange(first, last), side="right") - 1
        entries["count"] = matrix["data"][first:last]
        bucket = cells // _CELLS
        order = np.argsort(bucket, kind="stable")
        buckets, starts = np.unique(bucket[order], return_index=True)
        for number, part in zip(buckets, np.split(entries[order], starts[1:]), strict=True):
            try:
                with open(folder / str(number), "ab") as file:
                    part.tofile(file)
            except OSError as error:
                raise DataError(
                    f"{folder}: no room for a copy of {path.name} by cell ({error}): set TMPDIR to a larger disk"
                ) from error
    return CellMajorCopy(folder, n_cells, n_genes)

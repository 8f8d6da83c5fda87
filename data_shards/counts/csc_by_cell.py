"""Convert counts that are stored by gene (CSC) into counts by cell, in bounded memory.

A first pass distributes the entries of the file to buckets of a few thousand cells, one file each. A second pass sorts
each bucket by cell, so that any range of cells is a slice of one or a few buckets.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.counts.gzip_chunks import SpanReader
from data_shards.counts.read_errors import as_data_errors
from data_shards.errors import DataError
from data_shards.files.work_folder import new_part, write_arrays
from data_shards.workers.progress import Progress

#: Cells in a bucket.
_CELLS = 2048
#: Entries of the file that are in memory at a time.
_ENTRIES = 1 << 23
_ENTRY = np.dtype([("cell", np.uint16), ("gene", np.int32), ("count", np.float64)])
_NAME = "by-cell"


@dataclass(frozen=True)
class CellMajorCopy:
    """A copy by cell in a folder: row pointers, genes and counts of each bucket of cells."""

    path: Path
    n_cells: int

    def stored_entries(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Number of entries of each cell in [start, stop): int64 (stop - start,)."""
        lengths = [np.diff(self._pointers(bucket)[low : high + 1]) for bucket, low, high in _spans(start, stop)]
        return np.concatenate(lengths)

    def rows(
        self, first: int, last: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """Read the entries of cells [first, last): row pointers from 0 (int64), genes (int32), counts (float64)."""
        lengths, genes, counts = [], [], []
        for bucket, low, high in _spans(first, last):
            pointers = self._pointers(bucket)[low : high + 1]
            lengths.append(np.diff(pointers))
            begin, size = int(pointers[0]), int(pointers[-1] - pointers[0])
            genes.append(np.fromfile(self.path / f"{bucket}.genes", np.int32, size, offset=4 * begin))
            counts.append(np.fromfile(self.path / f"{bucket}.counts", np.float64, size, offset=8 * begin))
        indptr = np.concatenate([np.zeros(1, np.int64), np.concatenate(lengths).cumsum()])
        return indptr, np.concatenate(genes), np.concatenate(counts)

    def _pointers(self, bucket: int) -> npt.NDArray[np.int64]:
        return np.fromfile(self.path / f"{bucket}.pointers", np.int64)


def _spans(first: int, last: int) -> list[tuple[int, int, int]]:
    """The buckets of cells [first, last), each with the range [low, high) of these cells within the bucket."""
    buckets = range(first // _CELLS, -(-last // _CELLS))
    return [(b, max(first - b * _CELLS, 0), min(last - b * _CELLS, _CELLS)) for b in buckets]


def copy_by_cell(matrix: Any, n_cells: int, n_genes: int, path: Path, folder: Path) -> CellMajorCopy:
    """Copy a CSC matrix by cell, unless the copy exists already.

    Args:
        matrix: group with `data`, `indices` and `indptr`.
        n_cells: number of rows.
        n_genes: number of columns.
        path: the file of the matrix, for messages.
        folder: existing folder, in which the copy becomes a part.

    Raises:
        DataError: the matrix is damaged, or the folder's disk is full.
    """
    copy = folder / _NAME
    if not copy.exists():
        with new_part(copy) as part:
            _distribute(matrix, n_cells, n_genes, path, part)
            for bucket in Progress(range(-(-n_cells // _CELLS)), desc=f"{path.stem} by cell"):
                _sort(part, bucket, min(_CELLS, n_cells - bucket * _CELLS), n_genes)
    return CellMajorCopy(copy, n_cells)


def _distribute(matrix: Any, n_cells: int, n_genes: int, path: Path, part: Path) -> None:
    """Append each entry to the file of its bucket."""
    with as_data_errors(path):
        indptr = np.asarray(matrix["indptr"][:]).astype(np.int64)
    n_entries = int(indptr[-1])
    if len(indptr) != n_genes + 1 or np.any(np.diff(indptr) < 0) or matrix["indices"].shape[0] < n_entries:
        raise DataError(f"{path}: the column pointers are damaged: fetch it again")
    all_cells, all_counts = SpanReader(matrix["indices"]), SpanReader(matrix["data"])
    for first in Progress(range(0, n_entries, _ENTRIES), desc=f"{path.stem} by gene"):
        last = min(first + _ENTRIES, n_entries)
        with as_data_errors(path):
            cells, counts = all_cells.read(first, last).astype(np.int64), all_counts.read(first, last)
        if cells.min() < 0 or cells.max() >= n_cells:
            raise DataError(f"{path}: a row index is outside the matrix: fetch it again")
        entries = np.empty(last - first, _ENTRY)
        entries["cell"] = cells % _CELLS
        entries["gene"] = np.searchsorted(indptr, np.arange(first, last), side="right") - 1
        entries["count"] = counts
        bucket = cells // _CELLS
        order = np.argsort(bucket, kind="stable")
        buckets, starts = np.unique(bucket[order], return_index=True)
        for number, of_bucket in zip(buckets, np.split(entries[order], starts[1:]), strict=True):
            write_arrays(part, {f"{number}.entries": of_bucket})


def _sort(part: Path, bucket: int, n_cells: int, n_genes: int) -> None:
    """Sort the entries of a bucket by cell, and by gene within each cell."""
    unsorted = part / f"{bucket}.entries"
    entries = np.fromfile(unsorted, _ENTRY) if unsorted.exists() else np.empty(0, _ENTRY)
    # Conversion from coordinates sorts by cell, keeps the order of genes and sums duplicates.
    counts = sp.csr_matrix((entries["count"], (entries["cell"].astype(np.int32), entries["gene"])), (n_cells, n_genes))
    counts.sort_indices()
    arrays = {
        "pointers": counts.indptr.astype(np.int64),
        "genes": counts.indices.astype(np.int32),
        "counts": counts.data,
    }
    write_arrays(part, {f"{bucket}.{name}": values for name, values in arrays.items()})
    unsorted.unlink(missing_ok=True)

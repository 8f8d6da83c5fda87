"""Read counts from AnnData files (`.h5ad` or Zarr) a few thousand cells at a time.

A missing Zarr chunk reads as zeros. Therefore all chunks of a sparse matrix must exist. In a dense matrix, chunks
without counts are legitimately absent, so a lost chunk cannot be distinguished from an empty one.
"""

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import zarr

from data_shards.counts.annotations import CellAnnotations, read_annotations
from data_shards.counts.count_loops import BAD, FRACTION, OUTSIDE, UNSORTED, ZERO, copy_entries, dense_entries
from data_shards.counts.count_options import CountOptions
from data_shards.counts.csc_by_cell import CellMajorCopy, copy_by_cell
from data_shards.counts.formats import open_root
from data_shards.counts.gzip_chunks import SpanReader
from data_shards.counts.read_errors import as_data_errors
from data_shards.errors import DataError
from data_shards.files.kinds import COUNTS, MEDIANS, STORE, kind_of

#: Elements of a dense matrix that are in memory at a time.
_DENSE_BLOCK = 1 << 24


@dataclass(frozen=True)
class CountSource:
    """What another process needs to open the same counts; picklable."""

    path: Path
    options: CountOptions
    by_cell: CellMajorCopy | None

    def open(self) -> "CountFile":
        """Open the counts."""
        return CountFile(self.path, self.options, self.by_cell)


def open_counts(
    path: str | Path, options: CountOptions | None = None, scratch: Path | None = None, root: Any = None
) -> "CountFile":
    """Open an AnnData file to read its counts.

    Args:
        path: the file.
        options: where its counts are.
        scratch: an existing folder that all workers see. If counts are stored by gene, their copy by cell is kept in
            this folder as a part, and reused if it exists already. None puts the copy in TMPDIR and removes it when the
            file is closed.
        root: the file as it is open already, for counts in memory.

    Raises:
        DataError: the file is missing, damaged, empty or not AnnData, or it lacks the matrix named by the options.
    """
    counts = CountFile(Path(path), options or CountOptions(), scratch=scratch, root=root)
    try:
        counts.require_whole()
    except BaseException:
        counts.close()
        raise
    return counts


class CountFile:
    """The counts of one AnnData file, with the names of its genes and its cell annotations.

    Args:
        path: the file, or the directory of an AnnData-Zarr.
        options: where its counts are.
        by_cell: the copy by cell of counts that are stored by gene, if it exists already.
        scratch, root: as for `open_counts`.

    Attributes:
        path, options: as given.
        name: the file's stem, which names the data set.
        format: storage of the matrix: "csr", "csc" or "dense".
        n_cells, n_genes: numbers of rows and columns.
        var: annotations of the genes, pandas DataFrame.
        annotations: the cell annotations, readable by rows.
    """

    def __init__(
        self,
        path: Path,
        options: CountOptions,
        by_cell: CellMajorCopy | None = None,
        scratch: Path | None = None,
        root: Any = None,
    ) -> None:
        self.path = path
        self.options = options
        self.name = path.stem
        self._root = open_root(path) if root is None else root
        self._by_cell = by_cell
        self._scratch = scratch
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        try:
            with as_data_errors(path):
                self._read_structure()
        except BaseException:
            self.close()
            raise

    def _read_structure(self) -> None:
        root, path, options = self._root, self.path, self.options
        if not ("obs" in root and "var" in root):
            if (kind := kind_of(path)) in (STORE, MEDIANS):
                raise DataError(f"{path}: is {kind}, not {COUNTS}: give the AnnData files that it was made from")
            raise DataError(f"{path}: not an AnnData file: it has no obs and var: convert it with anndata first")
        where, var_key = "X", "var"
        if options.layer is not None:
            where = f"layers/{options.layer}"
            if where not in root:
                layers = ", ".join(sorted(root["layers"])) if "layers" in root else ""
                raise DataError(f"{path}: no layer {options.layer!r}: --layer can be one of: {layers or '(none)'}")
        elif options.raw:
            # Files from before anndata 0.7 keep raw in groups named "raw.X" and "raw.var".
            where, var_key = ("raw.X", "raw.var") if "raw.X" in root else ("raw/X", "raw/var")
            if where not in root or var_key not in root:
                raise DataError(f"{path}: has no raw counts: leave out --raw or name a layer with --layer")
        if where not in root:
            raise DataError(f"{path}: has no X: name its counts with --layer or --raw")
        self._matrix: Any = root[where]
        self.format, (self.n_cells, self.n_genes) = _matrix_format(path, where, self._matrix)
        if not (self.n_cells and self.n_genes):
            raise DataError(
                f"{path}: {where} has {self.n_cells:,} cells and {self.n_genes:,} genes: there is nothing to read; "
                "leave the file out, or name the counts with --layer or --raw"
            )
        var = read_annotations(root[var_key])
        if len(var) != self.n_genes:
            raise DataError(f"{path}: {where} has {self.n_genes:,} columns but {var_key} names {len(var):,} genes")
        self.var = var
        self.annotations = CellAnnotations(root["obs"], root.get("uns"))
        if self.annotations.n_cells != self.n_cells:
            raise DataError(
                f"{path}: {where} has {self.n_cells:,} rows but obs describes {self.annotations.n_cells:,} cells"
            )
        if options.gene_column is not None and options.gene_column not in var.columns:
            columns = ", ".join(map(str, var.columns)) or "(none)"
            raise DataError(
                f"{path}: no column {options.gene_column!r} in {var_key}: --gene-column can be one of: {columns}"
            )

    @cached_property
    def gene_names(self) -> list[str]:
        """Names of the genes as delivered: `gene_column` of the options, or the index of `var`."""
        column = self.var.index if self.options.gene_column is None else self.var[self.options.gene_column]
        return ["" if pd.isna(name) else str(name) for name in column]

    def read_obs(self, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read the annotations of cells [start, stop).

        Args:
            start: first cell.
            stop: one more than the last cell; None reads to the end.
            columns: names of the columns; None reads all.

        Returns:
            DataFrame (stop - start, columns), indexed by the cells' names.
        """
        with as_data_errors(self.path):
            return self.annotations.read(start, stop, columns)

    def require_whole(self) -> None:
        """Raise DataError if a chunk of a sparse matrix in Zarr is missing, since it would read as zeros."""
        if self.format == "dense" or not isinstance(self._matrix, zarr.Group):
            return
        with as_data_errors(self.path):
            arrays: dict[str, Any] = {name: self._matrix[name] for name in ("data", "indices", "indptr")}
            n_entries = arrays["data"].shape[0]
            if n_entries != int(arrays["indptr"][-1]):
                raise DataError(
                    f"{self.path}: {self._matrix.path}/indptr ends at {int(arrays['indptr'][-1]):,}, but there are "
                    f"{n_entries:,} counts: a chunk is missing or damaged, fetch it again"
                )
            for name, array in arrays.items():
                missing = array.nchunks - array.nchunks_initialized
                # Chunks of zeros are legitimately absent: `indptr` without counts, `indices` of a single gene or cell.
                if missing and n_entries and not (name == "indices" and 1 in (self.n_cells, self.n_genes)):
                    raise DataError(
                        f"{self.path}: {missing:,} of the {array.nchunks:,} chunks of {self._matrix.path}/{name} are "
                        "missing and would read as zeros: fetch it again"
                    )

    @property
    def source(self) -> CountSource:
        """A picklable handle to these counts; counts stored by gene are copied by cell first."""
        if self.format == "csc" and self._by_cell is None:
            scratch = self._scratch
            if scratch is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="gm-train-")
                scratch = Path(self._temporary.name)
            self._by_cell = copy_by_cell(self._matrix, self.n_cells, self.n_genes, self.path, scratch)
        return CountSource(self.path, self.options, self._by_cell)

    def stored_entries(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Number of stored entries of each cell in [start, stop): int64 (stop - start,); all genes if dense.

        Raises:
            DataError: the row pointers are damaged.
        """
        if self.format == "dense":
            return np.full(stop - start, self.n_genes, np.int64)
        if self.format == "csc":
            by_cell = self.source.by_cell
            assert by_cell is not None
            return by_cell.stored_entries(start, stop)
        with as_data_errors(self.path):
            return np.diff(self._row_pointers(start, stop))

    @cached_property
    def _entries(self) -> tuple[SpanReader, SpanReader]:
        """Readers of the genes and the counts of a csr matrix."""
        return SpanReader(self._matrix["indices"]), SpanReader(self._matrix["data"])

    def _row_pointers(self, first: int, last: int) -> npt.NDArray[np.int64]:
        indptr = np.asarray(self._matrix["indptr"][first : last + 1]).astype(np.int64)
        if len(indptr) != last - first + 1 or indptr[0] < 0 or np.any(np.diff(indptr) < 0):
            raise DataError(f"{self.path}: the row pointers of cells {first:,} to {last:,} are damaged: fetch it again")
        return indptr

    def chunks(self, rows: int = 4096, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Read and check the counts of cells [start, stop) in chunks; the next chunk is read in the background.

        Args:
            rows: cells per chunk.
            start: first cell.
            stop: one more than the last cell; None reads to the end.

        Yields:
            The first row of the chunk and its counts: csr_matrix (rows, n_genes), float64, with sorted, unique indices
            and without explicit zeros.

        Raises:
            DataError: NaN, infinite or negative values, counts that are not integers unless allowed, values that
                `counts_from` cannot convert to counts, or a damaged file.
        """
        stop = self.n_cells if stop is None else min(stop, self.n_cells)
        if start >= stop:
            return
        _ = self.source  # make a copy by cell in this thread, so that Ctrl-C can stop it
        with ThreadPoolExecutor(1) as reader:  # HDF5 and zarr let other threads run while they read
            reading = reader.submit(self._stored, start, min(start + rows, stop))
            for first in range(start, stop, rows):
                stored = reading.result()
                following = first + rows
                if following < stop:
                    reading = reader.submit(self._stored, following, min(following + rows, stop))
                chunk = self._checked(*stored, first)
                del stored
                yield first, chunk

    def _stored(self, first: int, last: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]:
        """Read the entries of cells [first, last) as stored: row pointers from 0, genes and counts."""
        with as_data_errors(self.path):
            return self._read(first, last)

    def _read(self, first: int, last: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[Any]]:
        if self.format == "dense":
            step = max(1, _DENSE_BLOCK // self.n_genes)
            blocks = (np.asarray(self._matrix[a : min(a + step, last)]) for a in range(first, last, step))
            parts = [dense_entries(np.ascontiguousarray(_computable(block))) for block in blocks]
            lengths = np.concatenate([np.diff(part[0]) for part in parts])
            indptr = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
            return indptr, np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
        if self.format == "csc":
            by_cell = self.source.by_cell
            assert by_cell is not None
            return by_cell.rows(first, last)
        indptr = self._row_pointers(first, last)
        indices, data = (array.read(int(indptr[0]), int(indptr[-1])) for array in self._entries)
        if not len(indices) == len(data) == indptr[-1] - indptr[0]:
            raise DataError(f"{self.path}: the counts of cells {first:,} to {last:,} are cut short: fetch it again")
        return indptr - indptr[0], indices, data

    def _checked(
        self, indptr: npt.NDArray[np.int64], indices: npt.NDArray[Any], data: npt.NDArray[Any], first: int
    ) -> sp.csr_matrix:
        genes, counts = np.empty(len(indices), np.int32), np.empty(len(indices), np.float64)
        bits = copy_entries(indptr, _computable(indices), _computable(data), self.n_genes, genes, counts)
        last = first + len(indptr) - 1
        if bits & OUTSIDE:
            raise DataError(
                f"{self.path}: a column index of cells {first:,} to {last:,} is outside the matrix: fetch it again"
            )
        chunk = sp.csr_matrix((counts, genes, indptr), (last - first, self.n_genes))
        if bits & UNSORTED:
            chunk.sum_duplicates()  # also sorts the indices
        else:
            chunk.has_canonical_format = True  # otherwise scipy checks again
        if bits & (UNSORTED | ZERO):
            chunk.eliminate_zeros()
        if bits & BAD:
            self._refuse(chunk, first, ~np.isfinite(chunk.data), "is not a number", "fix the value or drop the cell")
            what, fix = "is negative", "counts are in another matrix: try --layer or --raw"
            self._refuse(chunk, first, chunk.data < 0, what, fix)
        if self.options.counts_from == "log1p":
            return self._from_log1p(chunk, first)
        if bits & FRACTION and not self.options.allow_non_integer:
            fix = "name the raw counts with --layer or --raw, or use --counts-from log1p or --allow-non-integer"
            self._refuse(chunk, first, chunk.data != np.rint(chunk.data), "is not a whole count", fix)
        return chunk

    def _from_log1p(self, chunk: sp.csr_matrix, first: int) -> sp.csr_matrix:
        """Recover counts from log1p(count * scale of the cell), taking a cell's smallest value for a count of 1."""
        filled = np.flatnonzero(np.diff(chunk.indptr))
        if len(filled) == 0:
            return chunk
        scaled = np.expm1(chunk.data)
        smallest = np.minimum.reduceat(scaled, chunk.indptr[filled])
        counts = scaled / np.repeat(smallest, np.diff(chunk.indptr)[filled])
        whole = np.rint(counts)
        chunk.data = counts
        fix = "--counts-from log1p does not fit this matrix"
        self._refuse(
            chunk,
            first,
            ~(np.abs(counts - whole) <= 0.25),
            "(over the smallest) is more than 0.25 from a whole count",
            fix,
        )
        chunk.data = whole
        return chunk

    def _refuse(self, chunk: sp.csr_matrix, first: int, bad: npt.NDArray[np.bool_], what: str, fix: str) -> None:
        if not bad.any():
            return
        entry = int(np.argmax(bad))
        row = int(np.searchsorted(chunk.indptr, entry, side="right")) - 1
        gene = self.gene_names[chunk.indices[entry]]
        raise DataError(f"{self.path}: cell {first + row:,}, gene {gene}: {chunk.data[entry]:.6g} {what}: {fix}")

    def close(self) -> None:
        """Close the file and remove its temporary copy by cell."""
        if self._temporary is not None:
            self._temporary.cleanup()
        if close := getattr(self._root, "close", None):  # of HDF5
            close()

    def __enter__(self) -> "CountFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _computable(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert numbers to a dtype that compiled code accepts."""
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    plain = values.dtype.kind in "iu" or values.dtype in (np.float32, np.float64)
    return values if plain and values.dtype.isnative else values.astype(np.float64)


def _matrix_format(path: Path, where: str, matrix: Any) -> tuple[str, tuple[int, int]]:
    if isinstance(matrix, h5py.Dataset | zarr.Array):
        shape, kind = matrix.shape, "dense"
    else:
        attrs = dict(matrix.attrs)
        encoding = str(attrs.get("encoding-type", attrs.get("h5sparse_format", "unknown")))
        kind = encoding.removesuffix("_matrix")
        shape = attrs.get("shape", attrs.get("h5sparse_shape", ()))
        if kind not in ("csr", "csc"):
            raise DataError(f"{path}: {where} is stored as {encoding!r}: counts must be csr, csc or dense")
    if len(shape) != 2:
        raise DataError(f"{path}: {where} has shape {tuple(shape)}: counts have two dimensions, cells and genes")
    return kind, (int(shape[0]), int(shape[1]))

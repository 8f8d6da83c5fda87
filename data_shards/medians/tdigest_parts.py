"""Parts: the intermediate digests of a data set on disk, written once and read by ranges of genes.

A part is a folder with one file per array. A part merged by several tasks is a folder of pieces: each piece is such a
folder for a range of genes, named after the number of its first gene.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.files.work_folder import new_part, write_arrays
from data_shards.medians.tdigest import F32, I64, U32, Digests, Partition, digest_partition, scratch, weights_indptr

#: Most centroids, over all parts, in one merge task.
_CENTROIDS = 1 << 22
_FILES = {"means": np.dtype(np.float32), "weights": np.dtype(np.uint32)}


class _Piece:
    """Digests of a range of genes in a folder; means and weights are read on demand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.indptr = np.fromfile(folder / "indptr", np.int64)
        self.counts = np.fromfile(folder / "counts", np.int64)
        self._weights_from = weights_indptr(self.indptr, self.counts)

    def read(self, first: int, last: int) -> Digests:
        """Read the digests of genes [first, last), counted within the piece."""
        indptr = self.indptr[first : last + 1]
        means: F32 = self._read("means", indptr[0], indptr[-1])
        weights: U32 = self._read("weights", self._weights_from[first], self._weights_from[last])
        return Digests(means, weights, indptr - indptr[0], self.counts[first:last])

    def _read(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        dtype = _FILES[name]
        values = np.fromfile(self._folder / name, dtype, end - begin, offset=dtype.itemsize * begin)
        if len(values) != end - begin:
            raise DataError(f"{self._folder / name}: is damaged: remove {self._folder.parent} and start again")
        return values


@dataclass(frozen=True)
class DigestPart:
    """A part: digests of all genes of a data set.

    Attributes:
        folder: where it is stored.
    """

    folder: Path

    @cached_property
    def _pieces(self) -> list[_Piece]:
        alone = (self.folder / "indptr").exists()
        # Skip hidden folders: a task that seemed lost may still write one, and another task made that piece.
        return [_Piece(folder) for folder in ([self.folder] if alone else sorted(self.folder.glob("[!.]*")))]

    @cached_property
    def _bounds(self) -> list[int]:
        """Number of the first gene of each piece, then the number of all genes."""
        return [0, *np.cumsum([len(piece.counts) for piece in self._pieces]).tolist()]

    @cached_property
    def indptr(self) -> I64:
        """Where each gene's centroids begin in `means`: int64 (n_genes + 1,)."""
        lengths = np.concatenate([np.diff(piece.indptr) for piece in self._pieces])
        return np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])

    @cached_property
    def counts(self) -> I64:
        """Number of non-zero values of each gene: int64 (n_genes,)."""
        return np.concatenate([piece.counts for piece in self._pieces])

    @property
    def n_weights(self) -> int:
        """Number of weights stored."""
        return int(weights_indptr(self.indptr, self.counts)[-1])

    def read(self, first: int, last: int) -> Digests:
        """Read the digests of genes [first, last)."""
        spans = [
            piece.read(max(first, begin) - begin, min(last, end) - begin)
            for piece, (begin, end) in zip(self._pieces, pairwise(self._bounds), strict=True)
            if first < end and last > begin
        ]
        if len(spans) == 1:
            return spans[0]
        means = np.concatenate([np.empty(0, np.float32), *(span.means for span in spans)])
        weights = np.concatenate([np.empty(0, np.uint32), *(span.weights for span in spans)])
        return Digests(means, weights, self.indptr[first : last + 1] - self.indptr[first], self.counts[first:last])

    def chunks(self, name: str, size: int) -> Iterator[F32 | U32]:
        """Yield all `means` or `weights`, as `name` says, `size` elements at a time."""
        waiting: npt.NDArray[Any] = np.empty(0, _FILES[name])
        for first, last in gene_blocks(np.diff(self.indptr), size):
            waiting = np.concatenate([waiting, getattr(self.read(first, last), name)])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if len(waiting):
            yield waiting


def write_digests(folder: Path, digests: Digests) -> None:
    """Write digests to an existing folder."""
    names = ("means", "weights", "indptr", "counts")
    write_arrays(folder, {name: getattr(digests, name) for name in names})


def gene_blocks(lengths: npt.NDArray[np.int64], most: int) -> list[tuple[int, int]]:
    """Cut genes into ranges [first, last) of at most `most` centroids; a single gene may have more.

    Args:
        lengths: int64 (n_genes,), number of centroids of each gene.
        most: most centroids of a range.
    """
    ends, blocks, first = lengths.cumsum(), [], 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        blocks.append((first, last))
        first = last
    return blocks


@dataclass(frozen=True)
class DigestTask:
    """Digest a partition into the part `out`."""

    partition: Partition
    out: Path


def make_digests(task: DigestTask) -> None:
    """Digest a partition into a part.

    Raises:
        DataError: counts are bad, the file has changed, or the part cannot be written.
    """
    with new_part(task.out) as folder:
        write_digests(folder, digest_partition(task.partition))


@dataclass(frozen=True)
class MergeTask:
    """Merge genes [first, last) of parts, which all have the same genes, into the piece `out`."""

    parts: tuple[Path, ...]
    first: int
    last: int
    out: Path


def merge_tasks(parts: Sequence[Path], folder: Path) -> list[MergeTask]:
    """List the tasks that merge `parts` into pieces in `folder`, without pieces that exist already."""
    lengths = np.sum([np.diff(DigestPart(part).indptr) for part in parts], axis=0)
    tasks = [
        MergeTask(tuple(parts), first, last, folder / f"{first:08d}")
        for first, last in gene_blocks(lengths, _CENTROIDS) or [(0, 0)]
    ]
    return [task for task in tasks if not task.out.exists()]


def merge_digests(task: MergeTask) -> None:
    """Merge a range of genes of parts into a piece, and free this thread's `scratch`, which the merge does not need.

    Raises:
        DataError: the piece cannot be written.
    """
    scratch.forget()
    with new_part(task.out) as folder:
        parts = [DigestPart(part).read(task.first, task.last) for part in task.parts]
        n_genes = task.last - task.first
        write_digests(folder, Digests.merge(parts, [np.arange(n_genes, dtype=np.int32)] * len(parts), n_genes))

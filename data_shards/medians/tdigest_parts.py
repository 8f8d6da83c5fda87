"""Digests on disk, between those of a partition of cells and those of its data set: written once, read by genes.

A part is a folder with an array a file, or, where several tasks have merged it, a folder of such pieces, each of a
range of genes and named by the first one.
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

#: Centroids that a merge holds at a time.
_CENTROIDS = 1 << 22
_FILES = {"means": np.dtype(np.float32), "weights": np.dtype(np.uint32)}


class _Piece:
    """Digests of a range of genes in a folder, read as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.indptr = np.fromfile(folder / "indptr", np.int64)
        self.counts = np.fromfile(folder / "counts", np.int64)
        self._weights_from = weights_indptr(self.indptr, self.counts)

    def read(self, first: int, last: int) -> Digests:
        """The digests of its genes [first, last)."""
        indptr = self.indptr[first : last + 1]
        means: F32 = self._read("means", indptr[0], indptr[-1])
        weights: U32 = self._read("weights", self._weights_from[first], self._weights_from[last])
        return Digests(means, weights, indptr - indptr[0], self.counts[first:last])

    def _read(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        dtype = _FILES[name]
        found = np.fromfile(self._folder / name, dtype, end - begin, offset=dtype.itemsize * begin)
        if len(found) != end - begin:
            raise DataError(f"{self._folder / name}: is damaged: remove {self._folder.parent} and start again")
        return found


@dataclass(frozen=True)
class DigestPart:
    """Digests of all genes of a data set.

    Attributes:
        folder: the folder.
    """

    folder: Path

    @cached_property
    def _pieces(self) -> list[_Piece]:
        alone = (self.folder / "indptr").exists()
        # Hidden is what a task that was thought lost still writes: another has made that piece.
        return [_Piece(found) for found in ([self.folder] if alone else sorted(self.folder.glob("[!.]*")))]

    @cached_property
    def _bounds(self) -> list[int]:
        """Where the genes of each piece begin, and where all end."""
        return [0, *np.cumsum([len(piece.counts) for piece in self._pieces]).tolist()]

    @cached_property
    def indptr(self) -> I64:
        """Where each gene's centroids begin: int64 (n_genes + 1,)."""
        lengths = np.concatenate([np.diff(piece.indptr) for piece in self._pieces])
        return np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])

    @cached_property
    def counts(self) -> I64:
        """Non-zero values of each gene: int64 (n_genes,)."""
        return np.concatenate([piece.counts for piece in self._pieces])

    @property
    def n_weights(self) -> int:
        """Centroids whose weights are kept."""
        return int(weights_indptr(self.indptr, self.counts)[-1])

    def read(self, first: int, last: int) -> Digests:
        """The digests of genes [first, last)."""
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
        """All `means` or `weights`, `size` at a time."""
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
    """Ranges of genes of at most `most` centroids, or of one gene; `lengths` are those of each gene."""
    ends, blocks, first = lengths.cumsum(), [], 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        blocks.append((first, last))
        first = last
    return blocks


@dataclass(frozen=True)
class DigestTask:
    """A partition whose digests are to be written to `out`."""

    partition: Partition
    out: Path


def make_digests(task: DigestTask) -> None:
    """Digest a partition into a part.

    Raises:
        DataError: bad counts, the file is not what it was, or the part cannot be written.
    """
    with new_part(task.out) as folder:
        write_digests(folder, digest_partition(task.partition))


@dataclass(frozen=True)
class MergeTask:
    """Genes [first, last) of parts of the same genes that are to be merged into the piece `out`."""

    parts: tuple[Path, ...]
    first: int
    last: int
    out: Path


def merge_tasks(parts: Sequence[Path], folder: Path) -> list[MergeTask]:
    """What merges parts into pieces in `folder`, but for pieces that are there already."""
    lengths = np.sum([np.diff(DigestPart(part).indptr) for part in parts], axis=0)
    tasks = [
        MergeTask(tuple(parts), first, last, folder / f"{first:08d}")
        for first, last in gene_blocks(lengths, _CENTROIDS) or [(0, 0)]
    ]
    return [task for task in tasks if not task.out.exists()]


def merge_digests(task: MergeTask) -> None:
    """Merge a range of genes of parts into a piece; what partitions of this thread were digested in is given back.

    Raises:
        DataError: the piece cannot be written.
    """
    scratch.forget()
    with new_part(task.out) as folder:
        parts = [DigestPart(part).read(task.first, task.last) for part in task.parts]
        n_genes = task.last - task.first
        write_digests(folder, Digests.merge(parts, [np.arange(n_genes, dtype=np.int32)] * len(parts), n_genes))

"""Digests on disk, between those of a partition of cells and those of its data set: written once, read by genes."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_shards.digests import Digests, Partition, digest_partition, scratch
from data_shards.errors import DataError
from data_shards.work import new_part, write_arrays

#: Centroids that a merge holds at a time.
_CENTROIDS = 1 << 21


@dataclass(frozen=True)
class DigestPart:
    """Digests of all genes of a data set in a folder: an array a file, no weights of genes that keep all their values.

    Attributes:
        folder: the folder.
    """

    folder: Path

    @cached_property
    def indptr(self) -> npt.NDArray[np.int64]:
        """Where each gene's centroids begin: int64 (n_genes + 1,)."""
        return np.fromfile(self.folder / "indptr", np.int64)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Non-zero values of each gene: int64 (n_genes,)."""
        return np.fromfile(self.folder / "counts", np.int64)

    @cached_property
    def _weighted(self) -> npt.NDArray[np.int64]:
        """Centroids of each gene whose weights are written: int64 (n_genes,)."""
        lengths = np.diff(self.indptr)
        return np.where(lengths == self.counts, 0, lengths)

    @cached_property
    def _weights_before(self) -> npt.NDArray[np.int64]:
        return np.concatenate([np.zeros(1, np.int64), self._weighted.cumsum()])

    def read(self, first: int, last: int) -> Digests:
        """The digests of genes [first, last)."""
        indptr = self.indptr[first : last + 1]
        means = self._read("means", indptr[0], indptr[-1])
        weights = np.ones(len(means))
        written = np.repeat(self._weighted[first:last] > 0, np.diff(indptr))
        weights[written] = self._read("weights", self._weights_before[first], self._weights_before[last])
        return Digests(means, weights, indptr - indptr[0], self.counts[first:last])

    def chunks(self, name: str, size: int) -> Iterator[npt.NDArray[np.float64]]:
        """All `means` or `weights`, `size` at a time."""
        waiting = np.empty(0)
        for first, last in gene_blocks(np.diff(self.indptr), size):
            waiting = np.concatenate([waiting, getattr(self.read(first, last), name)])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if len(waiting):
            yield waiting

    def _read(self, name: str, begin: int, end: int) -> npt.NDArray[np.float64]:
        found = np.fromfile(self.folder / name, np.float64, end - begin, offset=8 * begin)
        if len(found) != end - begin:
            raise DataError(f"{self.folder / name}: is damaged: remove {self.folder.parent} and start again")
        return found


def write_digests(folder: Path, blocks: Iterable[Digests]) -> None:
    """Write the digests of one range of genes after the other to an existing folder."""
    write_arrays(folder, {"indptr": np.zeros(1, np.int64)})
    end = 0
    for block in blocks:
        lengths = np.diff(block.indptr)
        weights = block.weights[np.repeat(lengths != block.counts, lengths)]
        indptr = block.indptr[1:] + end
        write_arrays(folder, {"means": block.means, "weights": weights, "indptr": indptr, "counts": block.counts})
        end += len(block.means)


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
        write_digests(folder, [digest_partition(task.partition)])


@dataclass(frozen=True)
class MergeTask:
    """Parts of the same genes that are to be merged into `out` and then removed."""

    parts: tuple[Path, ...]
    out: Path


def merge_digests(task: MergeTask) -> None:
    """Merge parts into one, a block of genes at a time; what partitions of this thread were digested in is given back.

    Raises:
        DataError: the part cannot be written.
    """
    scratch.forget()
    try:
        with new_part(task.out) as folder:
            write_digests(folder, _merged([DigestPart(part) for part in task.parts]))
    except DataError:
        # A worker that was thought dead has merged and removed them.
        if not task.out.exists():
            raise
    for part in task.parts:
        shutil.rmtree(part, ignore_errors=True)


def _merged(parts: Sequence[DigestPart]) -> Iterable[Digests]:
    lengths = np.sum([np.diff(part.indptr) for part in parts], axis=0)
    for first, last in gene_blocks(lengths, _CENTROIDS):
        own = np.arange(last - first, dtype=np.int32)
        yield Digests.merge([part.read(first, last) for part in parts], [own] * len(parts), last - first)

"""Digests on disk, between those of a partition of cells and those of its data set: written once, read by genes."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_shards.digests import Digests, Partition, digest_partition
from data_shards.errors import DataError
from data_shards.work import new_part

#: Centroids that a merge holds at a time.
_CENTROIDS = 1 << 21
DIGEST_TYPES = {"means": np.float64, "weights": np.float64, "indptr": np.int64, "counts": np.int64}


@dataclass(frozen=True)
class DigestPart:
    """Digests of all genes of a data set in a folder, an array a file."""

    folder: Path

    @cached_property
    def indptr(self) -> npt.NDArray[np.int64]:
        """Where each gene's centroids begin: int64 (n_genes + 1,)."""
        return self._read("indptr", 0, -1)

    @property
    def n_genes(self) -> int:
        return len(self.indptr) - 1

    def read(self, first: int, last: int) -> Digests:
        """The digests of genes [first, last)."""
        indptr = self.indptr[first : last + 1]
        begin, size = int(indptr[0]), int(indptr[-1] - indptr[0])
        return Digests(
            self._read("means", begin, size),
            self._read("weights", begin, size),
            indptr - begin,
            self._read("counts", first, last - first),
        )

    def slices(self, name: str, size: int) -> tuple[int, Iterator[npt.NDArray[Any]]]:
        """The length of one of its arrays, and the array, `size` elements at a time."""
        length = (self.folder / name).stat().st_size // 8
        return length, (self._read(name, a, min(size, length - a)) for a in range(0, length, size))

    def _read(self, name: str, begin: int, size: int) -> npt.NDArray[Any]:
        found = np.fromfile(self.folder / name, DIGEST_TYPES[name], size, offset=8 * begin)
        if size >= 0 and len(found) != size:
            raise DataError(f"{self.folder / name}: is damaged: remove {self.folder.parent} and start again")
        return found


def write_digests(folder: Path, blocks: Iterable[Digests]) -> None:
    """Write the digests of one range of genes after the other to an existing folder."""
    with ExitStack() as opened:
        files = {name: opened.enter_context(open(folder / name, "wb")) for name in DIGEST_TYPES}
        np.zeros(1, np.int64).tofile(files["indptr"])
        end = 0
        for block in blocks:
            for name in ("means", "weights", "counts"):
                getattr(block, name).tofile(files[name])
            (block.indptr[1:] + end).tofile(files["indptr"])
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
    """Merge parts into one, a block of genes at a time.

    Raises:
        DataError: the part cannot be written.
    """
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

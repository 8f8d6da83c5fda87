"""Per-gene t-digests of normalised counts: made from ranges of cells, joined in flat merges.

A merge takes the centroids of all its parts at once, sorted, so that it does not depend on their order. Up to 1,000
values or centroids of a gene are kept as they are; only beyond that does the library (fastdigest) compress them.
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from fastdigest import TDigest, merge_all

from data_shards.counts import CountSource
from data_shards.errors import DataError
from data_shards.fingerprint import Fingerprint
from data_shards.kernels import cell_totals, count_by_gene, map_genes, place_by_gene, scaled_entries

#: Genes with up to this many values keep each of them: their medians are exact.
MAX_CENTROIDS = 1000
#: Counts of a cell are brought to this total.
TARGET_TOTAL = 10_000.0
#: Entries of a file that are held as they are read.
_ENTRIES = 1 << 20
#: What stands in front of the (mean, weight) pairs of a digest that the library reads and writes: its name, version,
#: number of centroids, most centroids (0: no limit), sum of weights, sum of values, least, largest, pairs added.
_HEADER = struct.Struct("<8sIQQddddQ12x")
HEADER_PAIRS = _HEADER.size // 16

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Digests:
    """A t-digest for each of n genes, ragged.

    Attributes:
        means: float64, centroids of all genes one after the other, those of a gene from the least.
        weights: float64, values behind each centroid.
        indptr: int64 (n + 1,), where each gene's centroids begin.
        counts: int64 (n,), non-zero values of each gene.
    """

    means: F64
    weights: F64
    indptr: I64
    counts: I64

    @classmethod
    def from_values(cls, starts: I64, values: F64) -> "Digests":
        """Digest the values of each gene, which stand in [starts[i], starts[i + 1]); overwrites `values`."""
        counts = np.diff(starts)
        for gene in np.flatnonzero(counts > 1):
            values[starts[gene] : starts[gene + 1]].sort()
        return _compressed(values, None, starts, counts)

    @classmethod
    def merge(cls, parts: "Sequence[Digests]", numbers: Sequence[npt.NDArray[np.int32]], n_genes: int) -> "Digests":
        """One digest a gene from those of all parts.

        Args:
            parts: digests, in any order.
            numbers: for each part, int32, the number in the result of each of its genes.
            n_genes: genes of the result.
        """
        lengths, counts, n_parts = (np.zeros(n_genes, np.int64) for _ in range(3))
        for part, genes in zip(parts, numbers, strict=True):
            lengths[genes] += np.diff(part.indptr)
            counts[genes] += part.counts
            n_parts[genes] += part.counts > 0
        starts = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        means, weights = np.empty(starts[-1]), np.empty(starts[-1])
        fill = starts[:-1].copy()
        for part, genes in zip(parts, numbers, strict=True):
            _gather(part.means, part.weights, part.indptr, genes, fill, means, weights)
        kept_all = counts == lengths
        for gene in np.flatnonzero(n_parts > 1):
            span = slice(starts[gene], starts[gene + 1])
            if kept_all[gene]:  # all weights are 1
                means[span].sort()
            else:
                order = means[span].argsort()
                means[span], weights[span] = means[span][order], weights[span][order]
        # Equal means come out of the sort in an order that depends on the processor.
        _sort_ties(means, weights, starts)
        return _compressed(means, weights, starts, counts)

    def medians(self) -> F64:
        """Median of each gene, NaN for those without a value: float64 (n,)."""
        medians = np.full(len(self.counts), np.nan)
        for gene in np.flatnonzero(self.counts):
            digest = library_digest(self.means, self.weights, self.indptr[gene], self.indptr[gene + 1])
            medians[gene] = digest.median()
        return medians


def _compressed(means: F64, weights: F64 | None, starts: I64, counts: I64) -> Digests:
    """Digests of at most 1,000 centroids a gene from sorted ones, which are overwritten; None is a weight of 1."""
    lengths = np.diff(starts)
    large = np.flatnonzero(lengths > MAX_CENTROIDS)
    found = []
    for gene in large:
        digest = library_digest(means, weights, starts[gene], starts[gene + 1])
        found.append(merge_all([digest], max_centroids=MAX_CENTROIDS).to_bytes())
    lengths[large] = [len(content) // 16 - HEADER_PAIRS for content in found]
    indptr = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    pairs = np.frombuffer(b"".join(found)).reshape(-1, 2)
    del found
    if weights is None:
        weights = np.ones(indptr[-1])
        _move(means, means, starts, indptr, large, pairs[:, 0])
        _move(weights, weights[:0], starts, indptr, large, pairs[:, 1])
    else:
        _move(means, means, starts, indptr, large, pairs[:, 0])
        _move(weights, weights, starts, indptr, large, pairs[:, 1])
    return Digests(means[: indptr[-1]], weights[: indptr[-1]], indptr, counts)


def library_digest(means: F64, weights: F64 | None, start: int, stop: int) -> TDigest:
    """The library's digest of the sorted centroids [start, stop), at least one, all of them kept.

    It is made from the library's binary form: making it from numbers takes five times as long.
    """
    size = int(stop - start)
    pairs = np.empty((HEADER_PAIRS + size, 2))
    weight, total = _pack(means, means[:0] if weights is None else weights, start, stop, pairs)
    ends = means[start], means[stop - 1]
    _HEADER.pack_into(pairs.data.cast("B"), 0, b"FASTDIG~", 1, size, 0, weight, total, *ends, size)
    return TDigest.from_bytes(pairs.tobytes())


@numba.njit(cache=True, nogil=True)
def _pack(means, weights, start, stop, pairs):  # type: ignore[no-untyped-def]
    """Write (mean, weight) of centroids to the end of `pairs`; without weights they are 1.

    Returns:
        The sums of the weights and of the values.
    """
    shift = len(pairs) - stop
    weight = total = 0.0
    for i in range(start, stop):
        one = weights[i] if len(weights) else 1.0
        pairs[i + shift, 0] = means[i]
        pairs[i + shift, 1] = one
        weight += one
        total += means[i] * one
    return weight, total


@numba.njit(cache=True, nogil=True)
def _move(to, kept, starts, indptr, large, found):  # type: ignore[no-untyped-def]
    """Bring each gene's numbers to `indptr` of `to`, from `starts` of `kept` or, of large genes, from `found`.

    `to` and `kept` may be the same, since nothing moves to the right; without any `kept`, those of small genes stay.
    """
    next_large = 0
    read = 0
    for gene in range(len(indptr) - 1):
        begin, end = indptr[gene], indptr[gene + 1]
        if next_large < len(large) and large[next_large] == gene:
            read += HEADER_PAIRS
            for place in range(begin, end):
                to[place] = found[read]
                read += 1
            next_large += 1
        elif len(kept):
            shift = starts[gene] - begin
            for place in range(begin, end):
                to[place] = kept[place + shift]


@numba.njit(cache=True, nogil=True)
def _gather(part_means, part_weights, indptr, genes, fill, means, weights):  # type: ignore[no-untyped-def]
    """Copy the centroids of each gene of a part to the place of the gene's number, and move that place on."""
    for i in range(len(genes)):
        place = fill[genes[i]]
        for j in range(indptr[i], indptr[i + 1]):
            means[place] = part_means[j]
            weights[place] = part_weights[j]
            place += 1
        fill[genes[i]] = place


@numba.njit(cache=True, nogil=True)
def _sort_ties(means, weights, starts):  # type: ignore[no-untyped-def]
    """Sort the weights of centroids with equal means, which stand next to each other."""
    for gene in range(len(starts) - 1):
        first = starts[gene]
        while first < starts[gene + 1]:
            last = first + 1
            unsorted = False
            while last < starts[gene + 1] and means[last] == means[first]:
                unsorted = unsorted or weights[last] < weights[last - 1]
                last += 1
            if unsorted:
                weights[first:last] = np.sort(weights[first:last])
            first = last


@dataclass(frozen=True, eq=False)
class Partition:
    """Cells [start, stop) of one file, digested together.

    Attributes:
        source: the file.
        file: its content, which must stay as it is.
        start, stop: rows.
        n_entries: what is stored of them.
        numbers: int32 (n_delivered,), number of each delivered gene or -1.
        n_genes: genes of the file.
    """

    source: CountSource
    file: Fingerprint
    start: int
    stop: int
    n_entries: int
    numbers: npt.NDArray[np.int32]
    n_genes: int

    @cached_property
    def repeats(self) -> bool:
        """Whether several delivered genes have the same number."""
        kept = self.numbers[self.numbers >= 0]
        return len(np.unique(kept)) < len(kept)


def normalised_values(partition: Partition) -> Iterator[tuple[npt.NDArray[np.int32], F64]]:
    """Gene numbers and `count / total * 10,000` of all non-zero counts, chunk by chunk.

    Raises:
        DataError: bad counts, or the file is not what it was; the latter after the last chunk.
    """
    n_cells = partition.stop - partition.start
    rows = max(1, n_cells * _ENTRIES // max(1, partition.n_entries))
    with partition.source.open() as counts:
        for _, chunk in counts.chunks(rows, partition.start, partition.stop):
            totals = cell_totals(chunk.indptr, chunk.data)
            entries, numbers = (chunk.indptr, chunk.indices, chunk.data), partition.numbers
            if partition.repeats:
                entries = map_genes(*entries, numbers, partition.n_genes)
                numbers = np.arange(partition.n_genes, dtype=np.int32)
            yield scaled_entries(*entries, numbers, totals, TARGET_TOTAL)
    partition.file.require_unchanged()


class _Scratch(threading.local):
    """Memory that a thread uses again: the system clears all that it gives, which takes time."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def take(self, name: str, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of that size, with anything in it, until the same name is asked for again."""
        if name not in self._arrays or len(self._arrays[name]) < size:
            self._arrays[name] = np.empty(size, dtype)
        return self._arrays[name][:size]

    def forget(self) -> None:
        """Give the memory back."""
        self._arrays.clear()


scratch = _Scratch()


def digest_partition(partition: Partition) -> Digests:
    """Digests of one range of cells, in memory that the same thread's next partition overwrites."""
    counts = np.zeros(partition.n_genes, np.int64)
    genes = scratch.take("genes", partition.n_entries, np.int32)
    values = scratch.take("values", partition.n_entries, np.float64)
    end = 0
    for some_genes, some_values in normalised_values(partition):
        count_by_gene(some_genes, counts)
        start, end = end, end + len(some_genes)
        if end > partition.n_entries:
            partition.file.require_unchanged()
            raise DataError(f"{partition.source.path}: holds more counts than its row pointers say: fetch it again")
        genes[start:end], values[start:end] = some_genes, some_values
    starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    grouped = scratch.take("grouped", end, np.float64)
    place_by_gene(genes[:end], values[:end], starts[:-1].copy(), grouped)
    return Digests.from_values(starts, grouped)

"""Per-gene t-digests of normalised counts: made from ranges of cells, joined in flat merges.

A merge sorts the centroids of all its parts together, so that it does not depend on the order of the parts. Up to 1,000
values or centroids of a gene are kept as they are; the library (fastdigest) compresses only more than these. Values are
float32, like the keys of ranking: rounding changes a median by at most a factor of 1 ± 6e-8; a digest's error is about
1e-4.
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from fastdigest import TDigest, merge_all

from data_shards.compiled import compiled
from data_shards.counts.count_file import CountSource
from data_shards.counts.count_loops import cell_totals, count_by_gene, map_genes, place_by_gene, scaled_entries
from data_shards.errors import DataError
from data_shards.files.fingerprint import Fingerprint

#: Genes with up to this many values keep each of them: their medians are exact.
MAX_CENTROIDS = 1000
#: The counts of a cell are scaled to this total.
TARGET_TOTAL = 10_000.0
#: Genes compressed in one batch, which bounds the memory for their library digests.
_AT_ONCE = 1024
_NO_WEIGHTS = np.empty(0, np.uint32)
#: Stored entries of a file in one chunk, about.
_ENTRIES = 1 << 20
#: Header of a digest in the library's binary form, before the (mean, weight) pairs: name, version, number of centroids,
#: most centroids (0: no limit), sum of weights, sum of values, smallest value, largest value, number of pairs added.
_HEADER = struct.Struct("<8sIQQddddQ12x")
HEADER_PAIRS = _HEADER.size // 16

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Digests:
    """A t-digest for each of n genes, ragged.

    Attributes:
        means: float32, above zero: the centroids of each gene in ascending order, gene after gene.
        weights: uint32, number of values behind each centroid; left out for genes that keep each value as a centroid.
        indptr: int64 (n + 1,), where each gene's centroids begin.
        counts: int64 (n,), number of non-zero values of each gene.
    """

    means: F32
    weights: U32
    indptr: I64
    counts: I64

    @cached_property
    def weights_from(self) -> I64:
        """Where each gene's weights begin: int64 (n + 1,)."""
        return weights_indptr(self.indptr, self.counts)

    @classmethod
    def from_values(cls, starts: I64, values: F32) -> "Digests":
        """Digest the values of each gene.

        Args:
            starts: int64 (n + 1,): gene i has values [starts[i], starts[i + 1]).
            values: float32, overwritten.
        """
        counts = np.diff(starts)
        for gene in np.flatnonzero(counts > 1):
            values[starts[gene] : starts[gene + 1]].sort()
        return _compressed(values, None, starts, counts)

    @classmethod
    def merge(cls, parts: "Sequence[Digests]", numbers: Sequence[npt.NDArray[np.int32]], n_genes: int) -> "Digests":
        """Merge the digests of all parts into one per gene.

        Args:
            parts: digests, in any order.
            numbers: for each part, int32 (its genes,), the number of each of its genes in the result.
            n_genes: number of genes in the result.
        """
        lengths, counts, n_parts = (np.zeros(n_genes, np.int64) for _ in range(3))
        for part, genes in zip(parts, numbers, strict=True):
            lengths[genes] += np.diff(part.indptr)
            counts[genes] += part.counts
            n_parts[genes] += part.counts > 0
        starts = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        pairs = np.empty(starts[-1], np.uint64)
        fill = starts[:-1].copy()
        for part, genes in zip(parts, numbers, strict=True):
            _gather(part.means.view(np.uint32), part.weights, part.indptr, part.weights_from, genes, fill, pairs)
        for gene in np.flatnonzero(n_parts > 1):
            pairs[starts[gene] : starts[gene + 1]].sort()
        means, weights = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.uint32)
        _unpair(pairs, means.view(np.uint32), weights)
        return _compressed(means, weights, starts, counts)

    def medians(self) -> F64:
        """Estimate the median of each gene, NaN for those without a value: float64 (n,)."""
        medians = np.full(len(self.counts), np.nan)
        for gene in np.flatnonzero(self.counts):
            means = self.means[self.indptr[gene] : self.indptr[gene + 1]]
            weights = self.weights[self.weights_from[gene] : self.weights_from[gene + 1]]
            medians[gene] = library_digest(means, weights).median()
        return medians


def weights_indptr(indptr: I64, counts: I64) -> I64:
    """Compute where the weights of each gene begin, int64 (n + 1,): genes that keep all their values store none.

    Args:
        indptr: int64 (n + 1,), where each gene's centroids begin.
        counts: int64 (n,), number of values of each gene.
    """
    lengths = np.diff(indptr)
    return np.concatenate([np.zeros(1, np.int64), np.where(lengths == counts, 0, lengths).cumsum()])


def _compressed(means: F32, weights: U32 | None, starts: I64, counts: I64) -> Digests:
    """Compress sorted centroids to at most 1,000 per gene.

    Args:
        means: float32, ascending within each gene; overwritten.
        weights: uint32, of all centroids; None means that all weights are 1.
        starts: int64 (n + 1,), where the centroids of each gene begin.
        counts: int64 (n,), number of values of each gene.
    """
    sizes = np.diff(starts)
    large = np.flatnonzero(sizes > MAX_CENTROIDS)
    indptr = np.zeros(len(starts), np.int64)
    kept_weights = [np.empty(0, np.uint32)]
    first = 0
    for begin in range(0, len(large) + 1, _AT_ONCE):
        batch = large[begin : begin + _AT_ONCE]
        compressed = []
        for gene in batch:
            span = slice(starts[gene], starts[gene + 1])
            digest = library_digest(means[span], _NO_WEIGHTS if weights is None else weights[span])
            compressed.append(merge_all([digest], max_centroids=MAX_CENTROIDS).to_bytes())
        sizes[batch] = [len(content) // 16 - HEADER_PAIRS for content in compressed]
        pairs = np.frombuffer(b"".join(compressed)).reshape(-1, 2)
        last = len(counts) if begin + _AT_ONCE > len(large) else int(batch[-1]) + 1
        indptr[first + 1 : last + 1] = indptr[first] + sizes[first:last].cumsum()
        weighted = sizes[first:last] != counts[first:last]
        own_weights = np.empty(sizes[first:last][weighted].sum(), np.uint32)
        _settle(
            means, _NO_WEIGHTS if weights is None else weights, starts, indptr, counts, first, last, pairs, own_weights
        )
        kept_weights.append(own_weights)
        first = last
    return Digests(means[: indptr[-1]], np.concatenate(kept_weights), indptr, counts)


def library_digest(means: F32, weights: U32) -> TDigest:
    """Make the library's digest of at least one sorted centroid; keep all of them.

    It is built in the library's binary form: building it from numbers takes five times as long.

    Args:
        means: float32 (n,), ascending.
        weights: uint32 (n,), or empty if all weights are 1.
    """
    size = len(means)
    pairs = np.empty((HEADER_PAIRS + size, 2))
    weight, total = _pack(means, weights, pairs)
    ends = float(means[0]), float(means[-1])
    _HEADER.pack_into(pairs.data.cast("B"), 0, b"FASTDIG~", 1, size, 0, weight, total, *ends, size)
    return TDigest.from_bytes(pairs.tobytes())


@compiled()
def _pack(means, weights, pairs):  # type: ignore[no-untyped-def]
    """Write the (mean, weight) pairs of centroids to the end of `pairs`; if `weights` is empty, they are 1.

    Returns:
        The sums of the weights and of the values.
    """
    shift = len(pairs) - len(means)
    weight = total = 0.0
    for i in range(len(means)):
        mean = np.float64(means[i])
        one = np.float64(weights[i]) if len(weights) else 1.0
        pairs[i + shift, 0] = mean
        pairs[i + shift, 1] = one
        weight += one
        total += mean * one
    return weight, total


@compiled()
def _settle(means, weights, starts, indptr, counts, first, last, pairs, kept_weights):  # type: ignore[no-untyped-def]
    """Move the centroids of genes [first, last) within `means`, from `starts` to `indptr`, never to the right.

    The centroids of compressed genes come from `pairs`, gene after gene with a header before each. The weights of genes
    that do not keep all their values go to `kept_weights`.
    """
    read = end = 0
    for gene in range(first, last):
        begin, size, start = indptr[gene], indptr[gene + 1] - indptr[gene], starts[gene]
        if starts[gene + 1] - start > MAX_CENTROIDS:
            read += HEADER_PAIRS
            for i in range(size):
                means[begin + i] = pairs[read, 0]
                kept_weights[end] = np.uint32(pairs[read, 1])
                read += 1
                end += 1
            continue
        if begin < start:
            for i in range(size):
                means[begin + i] = means[start + i]
        if size != counts[gene]:
            for i in range(size):
                kept_weights[end] = weights[start + i]
                end += 1


@compiled()
def _gather(means, weights, indptr, weights_from, genes, fill, pairs):  # type: ignore[no-untyped-def]
    """Write the centroids of a part to `pairs`, those of each gene at `fill` of its number, and advance `fill`.

    A pair has the bits of a mean above those of its weight, so that pairs sort as (mean, weight) do.
    """
    for i in range(len(genes)):
        place = fill[genes[i]]
        begin, before = indptr[i], weights_from[i]
        weighted = weights_from[i + 1] > before
        for j in range(indptr[i + 1] - begin):
            weight = np.uint64(weights[before + j]) if weighted else np.uint64(1)
            pairs[place] = (np.uint64(means[begin + j]) << np.uint64(32)) | weight
            place += 1
        fill[genes[i]] = place


@compiled()
def _unpair(pairs, means, weights):  # type: ignore[no-untyped-def]
    """Split pairs into the bits of their means, and their weights."""
    for i in range(len(pairs)):
        means[i] = np.uint32(pairs[i] >> np.uint64(32))
        weights[i] = np.uint32(pairs[i] & np.uint64(0xFFFFFFFF))


@dataclass(frozen=True, eq=False)
class Partition:
    """Cells [start, stop) of one file, digested together.

    Attributes:
        source: opens the file.
        file: its fingerprint; the file must not change.
        start, stop: rows.
        n_entries: number of their stored entries.
        numbers: int32 (n_delivered,), number of each gene as delivered, or -1.
        n_genes: one more than the largest possible number.
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
        """Whether several genes as delivered have the same number."""
        kept = self.numbers[self.numbers >= 0]
        return len(np.unique(kept)) < len(kept)


class _Scratch(threading.local):
    """Arrays that a thread reuses: fresh memory is slow, since the system clears it first."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def take(self, name: str, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array with undefined content; it is valid until the same name is taken again.

        Args:
            name: of the memory to reuse; one name must always have the same dtype.
            size: number of elements.
            dtype: type of the elements.
        """
        if name not in self._arrays or len(self._arrays[name]) < size:
            self._arrays[name] = np.empty(size, dtype)
        return self._arrays[name][:size]

    def forget(self) -> None:
        """Free the memory."""
        self._arrays.clear()


scratch = _Scratch()


def normalised_values(partition: Partition, together: bool = False) -> Iterator[tuple[npt.NDArray[np.int32], F32]]:
    """Yield gene numbers and `count / total * 10,000` of all non-zero counts, chunk by chunk.

    Args:
        partition: the cells.
        together: keep all chunks in `scratch`, one after the other; otherwise each overwrites the previous one.

    Raises:
        DataError: counts are bad, or the file has changed, which is checked after the last chunk.
    """
    n_cells = partition.stop - partition.start
    rows = max(1, n_cells * _ENTRIES // max(1, partition.n_entries))
    read = end = 0
    with partition.source.open() as counts:
        for _, chunk in counts.chunks(rows, partition.start, partition.stop):
            read += chunk.nnz
            if read > partition.n_entries:
                partition.file.require_unchanged()
                raise DataError(f"{partition.source.path}: holds more counts than its row pointers say: fetch it again")
            totals = cell_totals(chunk.indptr, chunk.data)
            entries, numbers = (chunk.indptr, chunk.indices, chunk.data), partition.numbers
            if partition.repeats:
                entries = map_genes(*entries, numbers, partition.n_genes)
                numbers = np.arange(partition.n_genes, dtype=np.int32)
            start, size = (end, partition.n_entries) if together else (0, chunk.nnz)
            genes, values = (
                scratch.take("genes", size, np.int32)[start:],
                scratch.take("values", size, np.float32)[start:],
            )
            kept = scaled_entries(*entries, numbers, totals, TARGET_TOTAL, genes, values)
            yield genes[:kept], values[:kept]
            end += kept
    partition.file.require_unchanged()


def digest_partition(partition: Partition) -> Digests:
    """Digest one range of cells. The result is valid until the same thread digests its next partition."""
    counts = np.zeros(partition.n_genes, np.int64)
    for chunk_genes, _ in normalised_values(partition, together=True):
        count_by_gene(chunk_genes, counts)
    starts = np.concatenate([np.zeros(1, np.int64), counts.cumsum()])
    size = int(starts[-1])
    genes, values = scratch.take("genes", size, np.int32), scratch.take("values", size, np.float32)
    grouped = scratch.take("grouped", size, np.float32)
    place_by_gene(genes, values, starts[:-1].copy(), grouped)
    return Digests.from_values(starts, grouped)

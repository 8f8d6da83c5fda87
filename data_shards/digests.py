"""Per-gene t-digests of normalised counts: made from ranges of cells, joined in flat merges.

A merge takes the centroids of all its parts at once, sorted, so that it does not depend on their order.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fastdigest import TDigest

from data_shards.counts import CountSource
from data_shards.kernels import cell_totals, group_by_gene, map_genes, normalise

#: Genes with up to this many values keep each of them: their medians are exact.
MAX_CENTROIDS = 1000
_NO_LIMIT = 0
#: Counts of a cell are brought to this total.
TARGET_TOTAL = 10_000.0

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Digests:
    """A t-digest for each of n genes, ragged.

    Attributes:
        means: float64, centroids of all genes one after the other.
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
        """Digest the values of each gene, which stand in [starts[i], starts[i + 1])."""
        return cls._build((values[a:b], None) for a, b in pairwise(starts))

    @classmethod
    def merge(cls, parts: "list[Digests]", numbers: list[npt.NDArray[np.int32]], n_genes: int) -> "Digests":
        """One digest a gene from those of all parts.

        Args:
            parts: digests, in any order.
            numbers: for each part, int32, the number in the result of each of its genes.
            n_genes: genes of the result.
        """
        if len(parts) == 1 and np.array_equal(numbers[0], np.arange(n_genes)):
            return parts[0]
        places = np.full((len(parts), n_genes), -1, np.int64)
        for part, genes in enumerate(numbers):
            places[part, genes] = np.arange(len(genes))

        def centroids() -> Iterable[tuple[F64, F64 | None]]:
            for gene in range(n_genes):
                spans = [
                    (part, slice(part.indptr[place], part.indptr[place + 1]))
                    for part, place in zip(parts, places[:, gene], strict=True)
                    if place >= 0 and part.counts[place]
                ]
                if len(spans) == 1:
                    part, span = spans[0]
                    yield np.asarray(part.means[span]), np.asarray(part.weights[span])
                    continue
                means = np.concatenate([part.means[span] for part, span in spans] or [np.empty(0)])
                weights = np.concatenate([part.weights[span] for part, span in spans] or [np.empty(0)])
                order = np.lexsort((weights, means))
                yield means[order], weights[order]

        return cls._build(centroids())

    @classmethod
    def _build(cls, genes: Iterable[tuple[F64, F64 | None]]) -> "Digests":
        means: list[F64] = []
        weights: list[F64] = []
        lengths = [0]
        counts: list[int] = []
        for values, weight in genes:
            n_values = len(values) if weight is None else int(weight.sum())
            pairs = np.empty((0, 2))
            if n_values:
                limit = MAX_CENTROIDS if len(values) > MAX_CENTROIDS else _NO_LIMIT
                digest = _digest(values, weight, limit)
                pairs = np.fromiter(chain.from_iterable(digest.centroids), np.float64).reshape(-1, 2)
            means.append(pairs[:, 0])
            weights.append(pairs[:, 1])
            lengths.append(len(pairs))
            counts.append(n_values)
        return cls(
            np.concatenate(means or [np.empty(0)]),
            np.concatenate(weights or [np.empty(0)]),
            np.cumsum(np.array(lengths, np.int64)),
            np.array(counts, np.int64),
        )

    def medians(self) -> F64:
        """Median of each gene, NaN for those without a value: float64 (n,)."""
        medians = np.full(len(self.counts), np.nan)
        for gene in np.flatnonzero(self.counts):
            span = slice(self.indptr[gene], self.indptr[gene + 1])
            medians[gene] = _digest(self.means[span], self.weights[span], _NO_LIMIT).median()
        return medians

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in ("means", "weights", "indptr", "counts"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "Digests":
        """What `save` wrote, left on disk until it is used."""
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("means", "weights", "indptr", "counts")]
        return cls(*arrays)


def _digest(values: F64, weights: F64 | None, max_centroids: int) -> TDigest:
    # Its annotations ask for lists, its code takes arrays.
    return TDigest.from_values(values, weights, max_centroids=max_centroids)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Partition:
    """Cells [start, stop) of one file, digested together.

    Attributes:
        source: the file.
        start, stop: rows.
        numbers: int32 (n_delivered,), number of each delivered gene or -1.
        n_genes: genes of the file.
    """

    source: CountSource
    start: int
    stop: int
    numbers: npt.NDArray[np.int32]
    n_genes: int


def normalised_values(partition: Partition, rows: int = 4096) -> Iterable[tuple[npt.NDArray[np.int32], F64]]:
    """Gene numbers and `count / total * 10,000` of all non-zero counts, chunk by chunk."""
    with partition.source.open() as counts:
        for _, chunk in counts.chunks(rows, partition.start, partition.stop):
            totals = cell_totals(chunk.indptr, chunk.data)
            indptr, genes, values = map_genes(
                chunk.indptr, chunk.indices, chunk.data, partition.numbers, partition.n_genes
            )
            yield genes, normalise(indptr, values, totals, TARGET_TOTAL)


def digest_partition(partition: Partition) -> Digests:
    """Digests of one range of cells."""
    parts = list(normalised_values(partition))
    genes = np.concatenate([part[0] for part in parts] or [np.empty(0, np.int32)])
    values = np.concatenate([part[1] for part in parts] or [np.empty(0)])
    parts.clear()  # the values of all chunks need the memory once
    return Digests.from_values(*group_by_gene(genes, values, partition.n_genes))

"""Rank the genes of each cell: one compiled kernel, and the arrays of the tokenizer that each task carries.

Keys are positive float32, whose bits sort as the numbers do: a least-significant-digit radix sort of 11 + 11 + 9 bits
ranks a cell without comparisons. Then `ties.py` orders equal keys by their hashes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.compiled import compiled
from data_shards.counts.count_loops import cell_totals
from data_shards.hashing import U64, mix64_scalar
from data_shards.tokens.cell_hash import hash_count
from data_shards.tokens.ties import DITHER, cell_key, dithered, order_ties

_RADIX = 2048
_TARGET = 10_000.0


@dataclass(frozen=True, eq=False)
class Ranked:
    """The ranked genes of cells.

    Attributes:
        genes: uint16 (n_tokens,), gene numbers, cell after cell, best-ranked gene first.
        indptr: int64 (n_cells + 1,), where each cell begins in `genes`.
        values: float32 (n_tokens,), `count / total * 10,000 / median` of each gene, from dithered counts if these are
            ranked; empty unless values were asked for.
        known: number of non-zero counts whose gene is in the vocabulary.
        hashes: uint64 (n_cells,), hash of each cell's counts (`cell_hash.py`).
    """

    genes: npt.NDArray[np.uint16]
    indptr: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    known: int
    hashes: U64


@dataclass(frozen=True, eq=False)
class Ranker:
    """The part of a tokenizer that ranking needs.

    Attributes:
        medians: float64 (n_genes,).
        gene_hashes: uint64 (n_genes,), `hash_string` of the gene ids.
        top_k: most tokens of a cell.
        dither: whether to rank dithered counts.
    """

    medians: npt.NDArray[np.float64]
    gene_hashes: U64
    top_k: int
    dither: bool

    def rank(self, counts: sp.csr_matrix, numbers: npt.NDArray[np.int32], with_values: bool = False) -> Ranked:
        """Rank the genes of cells; see `Tokenizer.encode`.

        Args:
            counts: csr_matrix (n_cells, n_delivered), float64, without repeated columns.
            numbers: int32 (n_delivered,), number of each gene as delivered in the vocabulary, or -1.
            with_values: also return the values.
        """
        above = counts.data > 0
        if not above.all():
            data = np.where(above, counts.data, 0)
            counts = sp.csr_matrix((data, counts.indices, counts.indptr), counts.shape, copy=True)
            counts.eliminate_zeros()
        return Ranked(
            *rank_genes(
                counts.indptr,
                counts.indices,
                counts.data,
                numbers,
                cell_totals(counts.indptr, counts.data),
                np.diff(counts.indptr).astype(np.int64),
                self.medians,
                self.gene_hashes,
                self.top_k,
                self.dither,
                with_values,
            )
        )


@compiled()
def rank_genes(indptr, indices, counts, numbers, totals, detected, medians, gene_hashes, top_k, dither, with_values):  # type: ignore[no-untyped-def]
    """Rank the genes of cells, best first; see `Tokenizer.encode`.

    Args:
        indptr: integers (n_cells + 1,), where each cell begins in `indices`.
        indices: integers (n,), genes as delivered, each at most once in a cell.
        counts: float64 (n,), above zero.
        numbers: int32 (n_delivered,), number of each gene as delivered, or -1; counts of the same number are summed.
        totals: float64 (n_cells,), sum of the counts of all genes as delivered.
        detected: int64 (n_cells,), number of non-zero counts among all genes as delivered.
        medians: float64 (n_genes,).
        gene_hashes: uint64 (n_genes,).
        top_k: most tokens of a cell.
        dither: whether to rank dithered counts.
        with_values: also return the values.

    Returns:
        gene numbers uint16 (n_tokens,); indptr int64 (n_cells + 1,); values float32 (n_tokens,), the key of each gene
        times 10,000 / total, or empty; the number of counts whose gene has a number; and the hash of each cell's
        counts, uint64 (n_cells,).
    """
    n_cells = len(indptr) - 1
    n_genes = len(medians)
    longest = most = known = 0
    for cell in range(n_cells):
        size = indptr[cell + 1] - indptr[cell]
        longest = max(longest, size)
        most += min(size, top_k, n_genes)
    ranked = np.empty(most, np.uint16)
    values = np.empty(most if with_values else 0, np.float32)
    out_indptr = np.zeros(n_cells + 1, np.int64)
    hashes = np.zeros(n_cells, np.uint64)
    floats = np.empty(longest, np.float32)
    bits = floats.view(np.uint32)
    summed = np.empty(longest, np.float64)
    keys_a, keys_b = np.empty(longest, np.uint32), np.empty(longest, np.uint32)
    genes_a, genes_b = np.empty(longest, np.uint16), np.empty(longest, np.uint16)
    histograms = np.zeros((3, _RADIX), np.int32)
    place_of = np.empty(n_genes, np.int32)
    seen_in = np.full(n_genes, -1, np.int32)
    repeats = False
    for gene in numbers:
        if gene >= 0:
            repeats = repeats or seen_in[gene] == 0
            seen_in[gene] = 0
    seen_in[:] = -1
    for cell in range(n_cells):
        n = 0
        for i in range(indptr[cell], indptr[cell + 1]):
            gene, count = numbers[indices[i]], counts[i]
            if gene < 0:
                continue
            known += 1
            if repeats:
                if seen_in[gene] == cell:
                    summed[place_of[gene]] += count
                    continue
                seen_in[gene] = cell
                place_of[gene] = n
            genes_a[n] = gene
            summed[n] = count
            n += 1
        key = cell_key(DITHER, totals[cell], detected[cell])
        histograms[:] = 0
        hashed = np.uint64(0)
        for i in range(n):
            gene, count = genes_a[i], summed[i]
            floats[i] = np.float32(count)
            hashed += hash_count(gene_hashes[gene], bits[i])
            if dither:
                count = dithered(count, mix64_scalar(key ^ gene_hashes[gene]))
            floats[i] = np.float32(count / medians[gene])
            # The highest bit of a positive float is 0; the complement of the others sorts in descending order.
            inverse = np.uint32(0x7FFFFFFF) ^ bits[i]
            keys_a[i] = inverse
            histograms[0, inverse & np.uint32(2047)] += 1
            histograms[1, (inverse >> np.uint32(11)) & np.uint32(2047)] += 1
            histograms[2, inverse >> np.uint32(22)] += 1
        for digit in range(3):
            shift = np.uint32(11 * digit)
            histogram = histograms[digit]
            place = np.int32(0)
            # The third digit has nine bits.
            for value in range(_RADIX if digit < 2 else 512):
                size = histogram[value]
                histogram[value] = place
                place += size
            for i in range(n):
                value = (keys_a[i] >> shift) & np.uint32(2047)
                place = histogram[value]
                histogram[value] = place + 1
                keys_b[place] = keys_a[i]
                genes_b[place] = genes_a[i]
            keys_a, keys_b = keys_b, keys_a
            genes_a, genes_b = genes_b, genes_a
        hashes[cell] = hashed
        kept = min(n, top_k)
        order_ties(keys_a[:n], genes_a[:n], kept, totals[cell], detected[cell], gene_hashes)
        base = out_indptr[cell]
        for i in range(kept):
            ranked[base + i] = genes_a[i]
        if with_values:
            for i in range(kept):
                bits[i] = np.uint32(0x7FFFFFFF) ^ keys_a[i]
                values[base + i] = np.float32(np.float64(floats[i]) * _TARGET / totals[cell])
        out_indptr[cell + 1] = base + kept
    n_tokens = out_indptr[-1]
    return ranked[:n_tokens].copy(), out_indptr, values[: n_tokens if with_values else 0].copy(), known, hashes

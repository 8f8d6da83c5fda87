"""A 64-bit hash of a cell's counts, to find the same cell again in another file.

The hash is the sum, modulo 2^64, of `mix64(hash of the gene id ^ bits of the count as float32)` over the genes of the
vocabulary that have a count in the cell. So it is the same in any order of cells and genes, under any name of the cell,
in any storage (CSR, CSC, dense; integers, floats), and with any genes besides those of the vocabulary. It changes with
a count of a gene of the vocabulary. Cells that differ have the same hash with a probability of 2^-64 for each pair:
among 10^8 cells of a store and 10^6 looked up, 5e-6 false matches are expected.
"""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.compiled import compiled
from data_shards.hashing import U64, mix64_scalar


def cell_hashes(
    counts: sp.csr_matrix, numbers: npt.NDArray[np.int32], gene_hashes: U64
) -> tuple[U64, npt.NDArray[np.int32]]:
    """Hash the counts of cells.

    Args:
        counts: csr_matrix (n_cells, n_delivered), float64, above zero, without repeated columns.
        numbers: int32 (n_delivered,), number of each gene as delivered in the vocabulary, or -1.
        gene_hashes: uint64 (n_genes,), `hash_string` of the gene ids of the vocabulary.

    Returns:
        The hash of each cell, uint64 (n_cells,), and its number of genes of the vocabulary, int32 (n_cells,); the hash
        of a cell without such a gene is 0.
    """
    hashes, n_genes = _hash_cells(counts.indptr, counts.indices, counts.data, numbers, gene_hashes)
    return hashes, n_genes


@compiled()
def _hash_cells(indptr, indices, counts, numbers, gene_hashes):  # type: ignore[no-untyped-def]
    n_cells = len(indptr) - 1
    hashes = np.zeros(n_cells, np.uint64)
    n_genes = np.zeros(n_cells, np.int32)
    times = np.zeros(len(gene_hashes), np.int32)
    repeats = False
    for gene in numbers:
        if gene >= 0:
            repeats = repeats or times[gene] > 0
            times[gene] += 1
    count_as_float = np.empty(1, np.float32)
    bits = count_as_float.view(np.uint32)
    # Only for files that deliver a gene twice: its counts are summed, as they are for ranking.
    summed = np.zeros(len(gene_hashes) if repeats else 0, np.float64)
    found = np.empty(len(gene_hashes) if repeats else 0, np.int32)
    for cell in range(n_cells):
        total = np.uint64(0)
        n = 0
        for i in range(indptr[cell], indptr[cell + 1]):
            gene = numbers[indices[i]]
            if gene < 0:
                continue
            if repeats and times[gene] > 1:
                if summed[gene] == 0:
                    found[n] = gene
                    n += 1
                summed[gene] += counts[i]
                continue
            count_as_float[0] = counts[i]
            total += mix64_scalar(gene_hashes[gene] ^ np.uint64(bits[0]))
            n_genes[cell] += 1
        for i in range(n):
            gene = found[i]
            count_as_float[0] = summed[gene]
            summed[gene] = 0
            total += mix64_scalar(gene_hashes[gene] ^ np.uint64(bits[0]))
        n_genes[cell] += n
        hashes[cell] = total
    return hashes, n_genes

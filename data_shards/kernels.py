"""Compiled loops over the counts of cells, without fast-math: the same bits on every machine.

numba's cache is renewed when the file of a kernel changes, not when one that it imports does: no kernel calls one of
another file.
"""

import numba
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]


@numba.njit(cache=True, nogil=True)
def cell_totals(indptr, data):  # type: ignore[no-untyped-def]
    """Sum of the counts of each cell, the same for any order of its genes: float64 (n_cells,)."""
    totals = np.zeros(len(indptr) - 1)
    for cell in range(len(totals)):
        total = 0.0
        whole = True
        for i in range(indptr[cell], indptr[cell + 1]):
            total += data[i]
            whole = whole and data[i] == np.floor(data[i])
        if not whole:
            # Whole counts add up exactly; others round, so that they are added from the smallest to the largest.
            total = 0.0
            for count in np.sort(data[indptr[cell] : indptr[cell + 1]]):
                total += count
        totals[cell] = total
    return totals


@numba.njit(cache=True, nogil=True)
def map_genes(indptr, indices, data, numbers, n_genes):  # type: ignore[no-untyped-def]
    """Counts by gene number: genes numbered -1 are dropped, those with the same number summed.

    Args:
        indptr: (n_cells + 1,).
        indices: delivered genes, (n,).
        data: counts float64 (n,).
        numbers: int32 (n_delivered,), number of each delivered gene or -1.
        n_genes: one more than the largest number.

    Returns:
        indptr int64 (n_cells + 1,), gene numbers int32 and counts float64 of each cell, each gene once.
    """
    out_indptr = np.zeros(len(indptr), np.int64)
    genes = np.empty(len(indices), np.int32)
    counts = np.empty(len(indices), np.float64)
    seen_in = np.full(n_genes, -1, np.int64)
    place_of = np.empty(n_genes, np.int64)
    end = 0
    for cell in range(len(indptr) - 1):
        for i in range(indptr[cell], indptr[cell + 1]):
            gene = numbers[indices[i]]
            if gene < 0:
                continue
            if seen_in[gene] == cell:
                counts[place_of[gene]] += data[i]
            else:
                seen_in[gene] = cell
                place_of[gene] = end
                genes[end] = gene
                counts[end] = data[i]
                end += 1
        out_indptr[cell + 1] = end
    return out_indptr, genes[:end], counts[:end]


@numba.njit(cache=True, nogil=True)
def normalise(indptr, counts, totals, target):  # type: ignore[no-untyped-def]
    """`count / total * target` of each entry, total being its cell's: float64 (n,)."""
    values = np.empty(len(counts))
    for cell in range(len(totals)):
        for i in range(indptr[cell], indptr[cell + 1]):
            values[i] = counts[i] / totals[cell] * target
    return values


@numba.njit(cache=True, nogil=True)
def group_by_gene(genes, values, n_genes):  # type: ignore[no-untyped-def]
    """Values gene by gene: starts int64 (n_genes + 1,) and the values in that order (n,)."""
    starts = np.zeros(n_genes + 1, np.int64)
    for gene in genes:
        starts[gene + 1] += 1
    for gene in range(n_genes):
        starts[gene + 1] += starts[gene]
    fill = starts[:-1].copy()
    grouped = np.empty(len(values), values.dtype)
    for i in range(len(values)):
        grouped[fill[genes[i]]] = values[i]
        fill[genes[i]] += 1
    return starts, grouped

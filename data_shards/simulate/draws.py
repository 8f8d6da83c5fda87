"""Compiled loops of the simulator: which gene each molecule comes from, which are caught, and how many a cell has.

They use random numbers that numpy has drawn, so that the values are those of numpy's generators.
"""

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled

_GUIDES = 1 << 14


def guide(cumulative: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Where the search for a uniform number begins, for each of 2^14 equal intervals: int32.

    The guide table of Chen and Asau (1974): a gene is found in constant time on average, and it is the one that a
    binary search finds.

    Args:
        cumulative: float64 (genes,), cumulative probabilities.
    """
    return np.searchsorted(cumulative, np.arange(_GUIDES) / _GUIDES, side="right").astype(np.int32)


@compiled()
def draw_genes(uniform, cumulative, guide):  # type: ignore[no-untyped-def]
    """The first gene whose cumulative probability is above each uniform number: int32 (n,)."""
    last = len(cumulative) - 1
    genes = np.empty(len(uniform), np.int32)
    for i in range(len(uniform)):
        # A power of two: the product is exact, so that the interval is the number's own.
        gene = min(guide[int(uniform[i] * len(guide))], last)
        while gene < last and cumulative[gene] <= uniform[i]:
            gene += 1
        genes[i] = gene
    return genes


@compiled()
def catch(genes, n_of_cell, uniform, probability, donors, caught, fill):  # type: ignore[no-untyped-def]
    """Append the caught molecules of each cell to its place in `caught`.

    Args:
        genes: int32 (n,), the gene of each molecule, cell by cell.
        n_of_cell: int64 (cells,), molecules of each cell.
        uniform: float64 (n,).
        probability: float64 (donors, genes), that a molecule is caught.
        donors: int64 (cells,).
        caught: int32, changed: the genes of the molecules of all cells.
        fill: int64 (cells,), changed: where each cell's next molecule goes.
    """
    i = 0
    for cell in range(len(n_of_cell)):
        place = fill[cell]
        of_donor = probability[donors[cell]]
        for _ in range(n_of_cell[cell]):
            caught[place] = genes[i]
            place += uniform[i] < of_donor[genes[i]]
            i += 1
        fill[cell] = place


@compiled()
def count_genes(caught, starts, stops, n_genes):  # type: ignore[no-untyped-def]
    """Molecules of each gene in each cell: float32 data, int32 indices and int64 indptr of a CSR matrix.

    Args:
        caught: int32, genes of molecules.
        starts, stops: int64 (cells,), where the molecules of each cell stand.
        n_genes: number of genes.
    """
    most = 0
    for cell in range(len(starts)):
        most += min(stops[cell] - starts[cell], n_genes)
    data, indices = np.empty(most, np.float32), np.empty(most, np.int32)
    indptr = np.zeros(len(starts) + 1, np.int64)
    counts = np.zeros(n_genes, np.int32)
    end = 0
    for cell in range(len(starts)):
        for i in range(starts[cell], stops[cell]):
            counts[caught[i]] += 1
        for gene in range(n_genes):
            if counts[gene]:
                data[end] = counts[gene]
                indices[end] = gene
                end += 1
                counts[gene] = 0
        indptr[cell + 1] = end
    return data[:end].copy(), indices[:end].copy(), indptr

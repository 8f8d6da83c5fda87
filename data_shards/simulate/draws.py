"""Compiled loops of the simulator: draw the gene of each molecule, catch molecules, and count them by cell and gene.

numpy draws the random numbers, so that results depend on its generators alone.
"""

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled

_GUIDES = 1 << 14  # a power of two: `draw_genes` relies on it


def guide(cumulative: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Make the guide table of Chen and Asau (1974), with which `draw_genes` finds a gene in constant time on average.

    The gene is the same as a binary search would find.

    Args:
        cumulative: float64 (genes,), cumulative probabilities.

    Returns:
        int32 (2^14,): the gene at which to begin the search for a number in each of 2^14 equal intervals of [0, 1).
    """
    return np.searchsorted(cumulative, np.arange(_GUIDES) / _GUIDES, side="right").astype(np.int32)


@compiled()
def draw_genes(uniform, cumulative, guide):  # type: ignore[no-untyped-def]
    """Find the first gene whose cumulative probability is above each uniform number.

    Args:
        uniform: float64 (n,), in [0, 1).
        cumulative: float64 (genes,), cumulative probabilities.
        guide: int32, the table that `guide` makes of them.

    Returns:
        int32 (n,), gene numbers.
    """
    last = len(cumulative) - 1
    genes = np.empty(len(uniform), np.int32)
    for i in range(len(uniform)):
        # The length of the table is a power of two, so the product is exact and gives the right interval.
        gene = min(guide[int(uniform[i] * len(guide))], last)
        while gene < last and cumulative[gene] <= uniform[i]:
            gene += 1
        genes[i] = gene
    return genes


@compiled()
def catch(genes, n_of_cell, uniform, probability, donors, caught, fill):  # type: ignore[no-untyped-def]
    """Append the caught molecules of each cell to its part of `caught`.

    Args:
        genes: int32 (n,), the gene of each molecule, cell by cell.
        n_of_cell: int64 (cells,), molecules of each cell.
        uniform: float64 (n,), in [0, 1).
        probability: float64 (donors, genes), that a molecule is caught.
        donors: int64 (cells,), the donor of each cell.
        caught: int32, changed in place: the genes of the caught molecules of all cells.
        fill: int64 (cells,), changed in place: the index in `caught` of each cell's next molecule.
    """
    i = 0
    for cell in range(len(n_of_cell)):
        end = fill[cell]
        of_donor = probability[donors[cell]]
        for _ in range(n_of_cell[cell]):
            # Always written; the next molecule overwrites one that is not caught.
            caught[end] = genes[i]
            end += uniform[i] < of_donor[genes[i]]
            i += 1
        fill[cell] = end


@compiled()
def count_genes(caught, starts, stops, n_genes):  # type: ignore[no-untyped-def]
    """Count the molecules of each gene in each cell.

    Args:
        caught: int32, genes of molecules.
        starts, stops: int64 (cells,), each cell's molecules are `caught[start:stop]`.
        n_genes: number of genes.

    Returns:
        float32 data, int32 indices and int64 indptr of a CSR matrix (cells, n_genes).
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

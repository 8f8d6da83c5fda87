"""Compiled loops over the counts of cells, without fast-math: the same bits on every machine."""

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]


@compiled()
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


@compiled()
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


@compiled()
def normalise(indptr, counts, totals, target):  # type: ignore[no-untyped-def]
    """`count / total * target` of each entry, total being its cell's: float64 (n,)."""
    values = np.empty(len(counts))
    for cell in range(len(totals)):
        for i in range(indptr[cell], indptr[cell + 1]):
            values[i] = counts[i] / totals[cell] * target
    return values


@compiled()
def scaled_entries(indptr, indices, data, numbers, totals, target, genes, values):  # type: ignore[no-untyped-def]
    """Gene numbers and `count / total * target` of all entries whose gene has a number, total being its cell's.

    Args:
        indptr: (n_cells + 1,).
        indices: delivered genes, (n,).
        data: counts float64 (n,).
        numbers: int32 (n_delivered,), number of each delivered gene or -1; no number stands twice.
        totals: float64 (n_cells,).
        target: what the counts of a cell are brought to.
        genes: int32, takes the gene numbers, in the order of the entries.
        values: float32, takes the values.

    Returns:
        How many there are.
    """
    end = 0
    for cell in range(len(totals)):
        for i in range(indptr[cell], indptr[cell + 1]):
            gene = numbers[indices[i]]
            if gene >= 0:
                genes[end] = gene
                values[end] = data[i] / totals[cell] * target
                end += 1
    return end


@compiled()
def count_by_gene(genes, counts):  # type: ignore[no-untyped-def]
    """Add the number of entries of each gene to `counts`, int64 (n_genes,)."""
    for gene in genes:
        counts[gene] += 1


@compiled()
def place_by_gene(genes, values, fill, grouped):  # type: ignore[no-untyped-def]
    """Write each value to the place of its gene in `grouped`, and move that place, `fill` int64 (n_genes,), on."""
    for i in range(len(genes)):
        grouped[fill[genes[i]]] = values[i]
        fill[genes[i]] += 1


@compiled()
def group_by_gene(genes, values, n_genes):  # type: ignore[no-untyped-def]
    """Values gene by gene: starts int64 (n_genes + 1,) and the values in that order (n,)."""
    starts = np.zeros(n_genes + 1, np.int64)
    count_by_gene(genes, starts[1:])
    for gene in range(n_genes):
        starts[gene + 1] += starts[gene]
    grouped = np.empty(len(values), values.dtype)
    place_by_gene(genes, values, starts[:-1].copy(), grouped)
    return starts, grouped


#: What `copy_entries` finds in stored entries, as bits.
OUTSIDE, UNSORTED, ZERO, BAD, FRACTION = 1, 2, 4, 8, 16


@compiled()
def copy_entries(indptr, indices, data, n_genes, genes, counts):  # type: ignore[no-untyped-def]
    """Copy stored entries to int32 `genes` and float64 `counts`, and say what they hold.

    Returns:
        The bits of: an index outside of [0, n_genes); indices of a cell that are not strictly rising; a zero; a count
        that is negative or not finite; a count that is not whole.
    """
    found = 0
    for cell in range(len(indptr) - 1):
        before = np.int64(-1)
        for i in range(indptr[cell], indptr[cell + 1]):
            gene = np.int64(indices[i])
            count = np.float64(data[i])
            if gene < 0 or gene >= n_genes:
                found |= OUTSIDE
            if gene <= before:
                found |= UNSORTED
            before = gene
            if count == 0:
                found |= ZERO
            if not (count >= 0 and count < np.inf):
                found |= BAD
            if count != np.rint(count):
                found |= FRACTION
            genes[i] = gene
            counts[i] = count
    return found


@compiled()
def dense_entries(block):  # type: ignore[no-untyped-def]
    """The entries of a dense block that are not zero: indptr int64, indices int32, data of the block's type."""
    indptr = np.zeros(len(block) + 1, np.int64)
    for cell in range(len(block)):
        n_entries = 0
        for gene in range(block.shape[1]):
            n_entries += block[cell, gene] != 0
        indptr[cell + 1] = indptr[cell] + n_entries
    indices = np.empty(indptr[-1], np.int32)
    data = np.empty(indptr[-1], block.dtype)
    end = 0
    for cell in range(len(block)):
        for gene in range(block.shape[1]):
            if block[cell, gene] != 0:
                indices[end] = gene
                data[end] = block[cell, gene]
                end += 1
    return indptr, indices, data

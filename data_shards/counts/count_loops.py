"""Compiled loops over the counts of cells, without fast-math, so that results are bit-identical on every machine."""

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]


@compiled()
def cell_totals(indptr, data):  # type: ignore[no-untyped-def]
    """Sum the counts of each cell, with the same result for any order of its genes: float64 (n_cells,)."""
    totals = np.zeros(len(indptr) - 1)
    for cell in range(len(totals)):
        total = 0.0
        whole = True
        for i in range(indptr[cell], indptr[cell + 1]):
            total += data[i]
            whole = whole and data[i] == np.floor(data[i])
        if not whole:
            # Integers add up exactly. Sums of other counts are rounded, so add them from the smallest to the largest.
            total = 0.0
            for count in np.sort(data[indptr[cell] : indptr[cell + 1]]):
                total += count
        totals[cell] = total
    return totals


@compiled()
def map_genes(indptr, indices, data, numbers, n_genes):  # type: ignore[no-untyped-def]
    """Convert counts by delivered gene to counts by gene number; genes with the same number are summed.

    Args:
        indptr: row pointers, (n_cells + 1,).
        indices: delivered gene of each entry, (n,).
        data: count of each entry, float64 (n,).
        numbers: number of each delivered gene, int32 (n_delivered,); -1 drops the gene.
        n_genes: one more than the largest number.

    Returns:
        Row pointers int64 (n_cells + 1,), gene numbers int32 and counts float64; each gene once per cell.
    """
    out_indptr = np.zeros(len(indptr), np.int64)
    genes = np.empty(len(indices), np.int32)
    counts = np.empty(len(indices), np.float64)
    seen_in = np.full(n_genes, -1, np.int64)
    entry_of = np.empty(n_genes, np.int64)
    end = 0
    for cell in range(len(indptr) - 1):
        for i in range(indptr[cell], indptr[cell + 1]):
            gene = numbers[indices[i]]
            if gene < 0:
                continue
            if seen_in[gene] == cell:
                counts[entry_of[gene]] += data[i]
            else:
                seen_in[gene] = cell
                entry_of[gene] = end
                genes[end] = gene
                counts[end] = data[i]
                end += 1
        out_indptr[cell + 1] = end
    return out_indptr, genes[:end], counts[:end]


@compiled()
def normalise(indptr, counts, totals, target):  # type: ignore[no-untyped-def]
    """Compute `count / total * target` of each entry: float64 (n,).

    Args:
        indptr: row pointers, (n_cells + 1,).
        counts: count of each entry, float64 (n,).
        totals: total count of each cell, float64 (n_cells,).
        target: total to which each cell is scaled.
    """
    values = np.empty(len(counts))
    for cell in range(len(totals)):
        for i in range(indptr[cell], indptr[cell + 1]):
            values[i] = counts[i] / totals[cell] * target
    return values


@compiled()
def scaled_entries(indptr, indices, data, numbers, totals, target, genes, values):  # type: ignore[no-untyped-def]
    """Compute the gene number and `count / total * target` of all entries whose gene has a number.

    Args:
        indptr: row pointers, (n_cells + 1,).
        indices: delivered gene of each entry, (n,).
        data: count of each entry, float64 (n,).
        numbers: number of each delivered gene, int32 (n_delivered,), or -1; numbers are unique.
        totals: total count of each cell, float64 (n_cells,).
        target: total to which each cell is scaled.
        genes: output, int32: receives the gene numbers in the order of the entries.
        values: output, float32: receives the values.

    Returns:
        Number of entries written.
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
    """Append each value to the group of its gene.

    Args:
        genes: gene number of each value, (n,).
        values: the values, (n,).
        fill: index in `grouped` for the next value of each gene, int64 (n_genes,); it is advanced.
        grouped: output, receives the values.
    """
    for i in range(len(genes)):
        grouped[fill[genes[i]]] = values[i]
        fill[genes[i]] += 1


@compiled()
def group_by_gene(genes, values, n_genes):  # type: ignore[no-untyped-def]
    """Group values by gene, in their order within each gene.

    Args:
        genes: gene number of each value, (n,).
        values: the values, (n,).
        n_genes: number of genes.

    Returns:
        The start of each gene's values, int64 (n_genes + 1,), and the grouped values (n,).
    """
    starts = np.zeros(n_genes + 1, np.int64)
    count_by_gene(genes, starts[1:])
    for gene in range(n_genes):
        starts[gene + 1] += starts[gene]
    grouped = np.empty(len(values), values.dtype)
    place_by_gene(genes, values, starts[:-1].copy(), grouped)
    return starts, grouped


#: Properties of stored entries that `copy_entries` reports, as bits.
OUTSIDE, UNSORTED, ZERO, BAD, FRACTION = 1, 2, 4, 8, 16


@compiled()
def copy_entries(indptr, indices, data, n_genes, genes, counts):  # type: ignore[no-untyped-def]
    """Copy stored entries to `genes` and `counts`, and report their properties.

    Args:
        indptr: row pointers, (n_cells + 1,).
        indices: stored gene of each entry, (n,).
        data: stored count of each entry, (n,).
        n_genes: number of genes.
        genes: output, int32 (n,).
        counts: output, float64 (n,).

    Returns:
        The bits of what occurs: OUTSIDE for an index outside of [0, n_genes), UNSORTED for indices of a cell that do
        not strictly increase, ZERO for a zero, BAD for a negative or non-finite count, FRACTION for a count that is not
        an integer.
    """
    bits = 0
    for cell in range(len(indptr) - 1):
        before = np.int64(-1)
        for i in range(indptr[cell], indptr[cell + 1]):
            gene = np.int64(indices[i])
            count = np.float64(data[i])
            if gene < 0 or gene >= n_genes:
                bits |= OUTSIDE
            if gene <= before:
                bits |= UNSORTED
            before = gene
            if count == 0:
                bits |= ZERO
            if not (count >= 0 and count < np.inf):
                bits |= BAD
            if count != np.rint(count):
                bits |= FRACTION
            genes[i] = gene
            counts[i] = count
    return bits


@compiled()
def dense_entries(block):  # type: ignore[no-untyped-def]
    """Find the nonzero entries of a dense block: row pointers int64, genes int32, counts in the block's dtype."""
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

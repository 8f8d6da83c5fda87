"""The compiled kernel that ranks the genes of a cell.

Keys are positive float32, whose bits order as the numbers do: a least-significant-digit radix sort of 11 + 11 + 9
bits ranks a cell without comparisons. Equal keys are then put in the order of their hashes.

Nothing that is compiled here comes from another file, whose changes numba's cache would not see.
"""

import numba
import numpy as np

_TIE = 0x7469655F6F726465
_DITHER = 0x6469746865725F75
_RADIX = 2048
_SMALL_RUN = 32
_TARGET = 10_000.0


@numba.njit("uint64(uint64)", cache=True, inline="always")
def mix64_scalar(x):  # type: ignore[no-untyped-def]
    """`hashing.mix64` of one uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def cell_key(purpose, total, detected):  # type: ignore[no-untyped-def]
    """Hash of what a cell is, apart from its genes: uint64."""
    bits = np.array([total]).view(np.uint64)[0]
    state = mix64_scalar(np.uint64(purpose))
    state = mix64_scalar(state ^ bits)
    return mix64_scalar(state ^ np.uint64(detected))


@numba.njit(cache=True, nogil=True)
def dithered(count, hashed):  # type: ignore[no-untyped-def]
    """`count` moved by less than a half (by less than itself if it is below a half), always above zero."""
    uniform = (np.float64(hashed >> np.uint64(12)) + 0.5) * 2.0**-52
    return count + (uniform - 0.5) * min(1.0, 2.0 * count)


@numba.njit(cache=True, nogil=True)
def rank_genes(indptr, indices, counts, numbers, totals, detected, medians, gene_hashes, top_k, dither, with_values):  # type: ignore[no-untyped-def]
    """Gene numbers of cells, best-ranked first; see `Tokenizer.encode`.

    Args:
        indptr: (n_cells + 1,).
        indices: genes as delivered, (n,), each once in a cell.
        counts: float64 (n,), above zero.
        numbers: int32 (n_delivered,), gene number of each delivered gene or -1; counts of the same number are summed.
        totals: float64 (n_cells,), over all genes as delivered.
        detected: int64 (n_cells,), non-zero counts among all genes as delivered.
        medians: float64 (n_genes,).
        gene_hashes: uint64 (n_genes,).
        top_k: most tokens of a cell.
        dither: rank dithered counts.
        with_values: return the values too.

    Returns:
        gene numbers uint16 (n_tokens,); indptr int64 (n_cells + 1,); values float32 (n_tokens,), the key of each gene
        times 10,000 / total, or none; and how many of the counts are of numbered genes.
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
        key = cell_key(_DITHER, totals[cell], detected[cell])
        histograms[:] = 0
        for i in range(n):
            gene, count = genes_a[i], summed[i]
            if dither:
                count = dithered(count, mix64_scalar(key ^ gene_hashes[gene]))
            floats[i] = np.float32(count / medians[gene])
            # Positive floats leave the highest bit clear; its complement orders descending.
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
        kept = min(n, top_k)
        _order_ties(keys_a[:n], genes_a[:n], kept, totals[cell], detected[cell], gene_hashes)
        base = out_indptr[cell]
        for i in range(kept):
            ranked[base + i] = genes_a[i]
        if with_values:
            for i in range(kept):
                bits[i] = np.uint32(0x7FFFFFFF) ^ keys_a[i]
                values[base + i] = np.float32(np.float64(floats[i]) * _TARGET / totals[cell])
        out_indptr[cell + 1] = base + kept
    n_tokens = out_indptr[-1]
    return ranked[:n_tokens].copy(), out_indptr, values[: n_tokens if with_values else 0].copy(), known


@numba.njit(cache=True, nogil=True)
def _order_ties(keys, genes, kept, total, detected, gene_hashes):  # type: ignore[no-untyped-def]
    """Put runs of equal keys that reach into the first `kept` places in the order of their hashes."""
    n = len(keys)
    key_of_tie = cell_key(_TIE, total, detected)
    start = 0
    while start < kept:
        stop = start + 1
        while stop < n and keys[stop] == keys[start]:
            stop += 1
        size = stop - start
        if size > 1:
            hashes = np.empty(size, np.uint64)
            for i in range(size):
                hashes[i] = mix64_scalar(key_of_tie ^ gene_hashes[genes[start + i]])
            if size <= _SMALL_RUN:
                for i in range(1, size):
                    hashed, gene = hashes[i], genes[start + i]
                    j = i
                    while j > 0 and hashes[j - 1] > hashed:
                        hashes[j] = hashes[j - 1]
                        genes[start + j] = genes[start + j - 1]
                        j -= 1
                    hashes[j] = hashed
                    genes[start + j] = gene
            else:
                genes[start:stop] = genes[start:stop][np.argsort(hashes)]
        start = stop

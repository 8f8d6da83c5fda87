"""Break ties between equally ranked genes by a hash, and dither counts by another.

Both hash the gene id with the cell's total and its number of detected genes. The result is the same on every machine,
and tells a model nothing about the cell's type.
"""

import numpy as np

from data_shards.compiled import compiled
from data_shards.hashing import mix64_scalar

#: Keys of the two hashes. They must not change: the same cells would get other tokens.
TIE = 0x7469655F6F726465
DITHER = 0x6469746865725F75
_SMALL_RUN = 32


@compiled()
def cell_key(purpose, total, detected):  # type: ignore[no-untyped-def]
    """Hash a cell, without its genes, for one purpose: uint64.

    Args:
        purpose: `TIE` or `DITHER`.
        total: float64, sum of the cell's counts.
        detected: integer, number of its non-zero counts.
    """
    bits = np.array([total]).view(np.uint64)[0]
    state = mix64_scalar(np.uint64(purpose))
    state = mix64_scalar(state ^ bits)
    return mix64_scalar(state ^ np.uint64(detected))


@compiled()
def dithered(count, hashed):  # type: ignore[no-untyped-def]
    """Move `count` by less than 0.5, or by less than itself if it is below 0.5; the result is always above zero."""
    uniform = (np.float64(hashed >> np.uint64(12)) + 0.5) * 2.0**-52
    return count + (uniform - 0.5) * min(1.0, 2.0 * count)


@compiled()
def order_ties(keys, genes, kept, total, detected, gene_hashes):  # type: ignore[no-untyped-def]
    """Sort each run of equal keys by hash, if it begins among the first `kept` keys.

    Args:
        keys: uint32 (n,), sorted.
        genes: uint16 (n,), gene number of each key; reordered in place.
        kept: number of keys that become tokens.
        total: float64, sum of the cell's counts.
        detected: integer, number of its non-zero counts.
        gene_hashes: uint64 (n_genes,), `hash_string` of the gene ids.
    """
    n = len(keys)
    key_of_tie = cell_key(TIE, total, detected)
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

"""Break ties between equally ranked genes by a hash, and dither counts by another.

Both hash the gene id with the cell's total and its number of detected genes: the same on every machine, and telling a
model nothing about the cell's type.
"""

import numpy as np

from data_shards.compiled import compiled
from data_shards.hashing import mix64_scalar

#: Keys of the two hashes; other values would make other tokens of the same cells.
TIE = 0x7469655F6F726465
DITHER = 0x6469746865725F75
_SMALL_RUN = 32


@compiled()
def cell_key(purpose, total, detected):  # type: ignore[no-untyped-def]
    """Hash of what a cell is, apart from its genes: uint64."""
    bits = np.array([total]).view(np.uint64)[0]
    state = mix64_scalar(np.uint64(purpose))
    state = mix64_scalar(state ^ bits)
    return mix64_scalar(state ^ np.uint64(detected))


@compiled()
def dithered(count, hashed):  # type: ignore[no-untyped-def]
    """`count` moved by less than a half (by less than itself if it is below a half), always above zero."""
    uniform = (np.float64(hashed >> np.uint64(12)) + 0.5) * 2.0**-52
    return count + (uniform - 0.5) * min(1.0, 2.0 * count)


@compiled()
def order_ties(keys, genes, kept, total, detected, gene_hashes):  # type: ignore[no-untyped-def]
    """Put runs of equal keys that reach into the first `kept` places in the order of their hashes."""
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

"""Exact non-zero medians in bounded memory, by radix selection on the bits of float32 values.

Positive float32 numbers order as their bits do. Three readings of the data each count, for every gene, the next bits of
the values that share the bits of its median so far: 11, then 10, then 10 of the 31. An even number of values has two
middle ones, which are followed side by side; the median is their mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_shards.digests import Partition, normalised_values
from data_shards.parallel import Workers

_WIDTHS = (11, 10, 10)

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Search:
    """The `known` bits found so far of the middle values of each gene: uint32 (1 or 2, n_genes)."""

    prefixes: U32
    known: int
    width: int


def exact_medians(
    partitions: Sequence[Partition], n_genes: int, workers: Workers
) -> tuple[npt.NDArray[np.float64], I64]:
    """Median of each gene's values, rounded to float32, and their number.

    Returns:
        medians float64 (n_genes,), NaN without a value, and counts int64 (n_genes,).
    """
    prefixes = np.zeros((2, n_genes), np.uint32)
    ranks = counts = np.zeros(n_genes, np.int64)
    known = 0
    for number, width in enumerate(_WIDTHS, 1):
        # Before any bit is known, both middle values are looked for in the same histogram.
        sides = 1 if known == 0 else 2
        search = _Search(prefixes[:sides], known, width)
        histogram = np.zeros((sides, n_genes, 1 << width), np.int64)
        found = workers.map_in_order(partial(_count, search), partitions)
        for part in tqdm(found, total=len(partitions), desc=f"exact medians, pass {number} of 3", disable=None):
            histogram += part
        if known == 0:
            counts = histogram[0].sum(axis=1)
            ranks = np.stack([np.maximum(counts - 1, 0) // 2, counts // 2])
        for side in range(2):
            for gene in range(n_genes):
                cumulative = histogram[min(side, sides - 1), gene].cumsum()
                digit = min(int(np.searchsorted(cumulative, ranks[side, gene], side="right")), (1 << width) - 1)
                ranks[side, gene] -= cumulative[digit - 1] if digit else 0
                prefixes[side, gene] = (prefixes[side, gene] << np.uint32(width)) | np.uint32(digit)
        known += width
    middle = prefixes.view(np.float32).astype(np.float64)
    return np.where(counts > 0, middle.mean(axis=0), np.nan), counts


def _count(search: _Search, partition: Partition) -> npt.NDArray[np.uint32]:
    histogram = np.zeros((*search.prefixes.shape, 1 << search.width), np.uint32)
    shift = 31 - search.known - search.width
    for genes, values in normalised_values(partition):
        bits = values.astype(np.float32).view(np.uint32)
        _add(histogram, genes, bits, search.prefixes, np.uint32(shift), np.uint32(search.width))
    return histogram


@numba.njit(cache=True, nogil=True)
def _add(histogram, genes, bits, prefixes, shift, width):  # type: ignore[no-untyped-def]
    """Count the next `width` bits of the values whose bits above are those of the gene's prefixes."""
    mask = np.uint32((np.uint32(1) << width) - np.uint32(1))
    for i in range(len(genes)):
        gene = genes[i]
        above = bits[i] >> np.uint32(shift)
        for side in range(len(prefixes)):
            if np.uint32(above >> width) == prefixes[side, gene]:
                histogram[side, gene, above & mask] += 1

"""Exact non-zero medians in bounded memory, by radix selection on the bits of float32 values.

Positive float32 numbers sort in the same order as their bits. The data is read three times. Each pass finds the next
bits of each gene's median (11, then 10, then 10 of the 31): it builds a histogram of these bits over the values whose
higher bits equal those found so far. An even number of values has two middle ones. Both are searched for, and the
median is their mean.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled
from data_shards.files.work_folder import new_part, write_arrays
from data_shards.medians.tdigest import Partition, normalised_values
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Workers

_WIDTHS = (11, 10, 10)
#: Partitions counted into one histogram.
_TOGETHER = 16

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Search:
    """State of the search before a pass.

    Attributes:
        prefixes: uint32 (1 or 2, n_genes), the highest `known` bits of each gene's middle values.
        known: bits found so far.
        width: bits that this pass finds.
    """

    prefixes: U32
    known: int
    width: int


def exact_medians(
    partitions: Sequence[Partition], n_genes: int, workers: Workers, work: Path
) -> tuple[npt.NDArray[np.float64], I64]:
    """Compute the median of each gene's float32 values, and count the values.

    Args:
        partitions: ranges of cells; all number their genes in the same way.
        n_genes: number of genes.
        workers: read the partitions.
        work: an existing folder for finished parts; a later run resumes from them.

    Returns:
        medians float64 (n_genes,), NaN for genes without a value, and counts int64 (n_genes,).
    """
    prefixes = np.zeros((2, n_genes), np.uint32)
    ranks = counts = np.zeros(n_genes, np.int64)
    known = 0
    for number, width in enumerate(_WIDTHS, 1):
        done = work / f"exact-{number}"
        if not done.exists():
            # In the first pass no bit is known yet, so that both middle values share one histogram.
            sides = 1 if known == 0 else 2
            search = _Search(prefixes[:sides], known, width)
            histogram = _histogram(search, partitions, workers, work, number)
            if known == 0:
                counts = histogram[0].sum(axis=1, dtype=np.int64)
                ranks = np.stack([np.maximum(counts - 1, 0) // 2, counts // 2])
            for side in range(2):
                for gene in range(n_genes):
                    cumulative = histogram[min(side, sides - 1), gene].cumsum(dtype=np.int64)
                    digit = min(int(np.searchsorted(cumulative, ranks[side, gene], side="right")), (1 << width) - 1)
                    ranks[side, gene] -= cumulative[digit - 1] if digit else 0
                    prefixes[side, gene] = (prefixes[side, gene] << np.uint32(width)) | np.uint32(digit)
            del histogram
            with new_part(done) as part:
                np.savez(part / "found.npz", prefixes=prefixes, ranks=ranks, counts=counts)
        with np.load(done / "found.npz") as saved:
            prefixes, ranks, counts = saved["prefixes"], saved["ranks"], saved["counts"]
        shutil.rmtree(work / f"pass-{number}", ignore_errors=True)
        known += width
    middle = prefixes.view(np.float32).astype(np.float64)
    return np.where(counts > 0, middle.mean(axis=0), np.nan), counts


@dataclass(frozen=True)
class _Count:
    """Partitions counted together, and the part that takes their histogram."""

    search: _Search
    partitions: tuple[Partition, ...]
    out: Path


def _histogram(
    search: _Search, partitions: Sequence[Partition], workers: Workers, work: Path, number: int
) -> npt.NDArray[np.uint32]:
    """Count the values in each bin of each gene over all partitions: uint32 (1 or 2, n_genes, bins)."""
    tasks = [
        _Count(search, tuple(partitions[first : first + _TOGETHER]), work / f"pass-{number}" / str(first // _TOGETHER))
        for first in range(0, len(partitions), _TOGETHER)
    ]
    missing = [task for task in tasks if not task.out.exists()]
    histogram = np.zeros((*search.prefixes.shape, 1 << search.width), np.uint32)
    with Progress(total=len(tasks), desc=f"exact medians, pass {number} of 3") as progress:
        progress.update(len(tasks) - len(missing))
        for _ in workers.map_in_order(_count, missing):
            progress.update()
    for task in tasks:
        # A plain += is enough: each bin occurs once in a part.
        bins, counts = (np.fromfile(task.out / name, np.uint32) for name in ("bins", "counts"))
        histogram.reshape(-1)[bins] += counts
    return histogram


def _count(task: _Count) -> None:
    search = task.search
    histogram = np.zeros((*search.prefixes.shape, 1 << search.width), np.uint32)
    shift = 31 - search.known - search.width
    for partition in task.partitions:
        for genes, values in normalised_values(partition):
            _add(histogram, genes, values.view(np.uint32), search.prefixes, np.uint32(shift), np.uint32(search.width))
    bins = np.flatnonzero(histogram)
    with new_part(task.out) as part:
        write_arrays(part, {"bins": bins.astype(np.uint32), "counts": histogram.reshape(-1)[bins]})


@compiled()
def _add(histogram, genes, bits, prefixes, shift, width):  # type: ignore[no-untyped-def]
    """Add to the histogram the next `width` bits of the values whose higher bits equal a prefix of their gene."""
    mask = np.uint32((np.uint32(1) << width) - np.uint32(1))
    for i in range(len(genes)):
        gene = genes[i]
        above = bits[i] >> np.uint32(shift)
        for side in range(len(prefixes)):
            if np.uint32(above >> width) == prefixes[side, gene]:
                histogram[side, gene, above & mask] += 1

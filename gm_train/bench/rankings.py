"""Common ways to rank the genes of cells, for comparison with the tokenizer's kernel.

Each takes the counts of whole cells and returns gene columns, best-ranked first. All rank by count / median,
descending. They differ in how they sort and in the order of exact ties.
They return one int64 array of columns per cell.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.tokens.tokenizer import GeneColumns, Tokenizer
from data_shards.tokens.vocabulary import FIRST_GENE, PAD

I64 = npt.NDArray[np.int64]
Ranking = Callable[[sp.csr_matrix, npt.NDArray[np.float64], int], list[I64]]


def medians_of_columns(tokenizer: Tokenizer, columns: GeneColumns) -> npt.NDArray[np.float64]:
    """Return the median of each delivered gene, NaN if it is not in the vocabulary: float64 (n_delivered,)."""
    known = columns.numbers >= 0
    medians = np.full(len(columns.numbers), np.nan)
    medians[known] = tokenizer.medians[columns.numbers[known]]
    return medians


def scipy_rows(counts: sp.csr_matrix, medians: npt.NDArray[np.float64], top_k: int) -> list[I64]:
    """Rank cell by cell with scipy, as Geneformer's tokenizer does: normalise, then sort the non-zero values.

    Args:
        counts: (n_cells, n_delivered).
        medians: float64 (n_delivered,).
        top_k: genes kept per cell.
    """
    factors = 1.0 / medians
    totals = np.asarray(counts.sum(axis=1)).ravel()
    ranked = []
    for cell in range(counts.shape[0]):
        row = counts[cell].multiply(10_000.0 / totals[cell]).multiply(factors).tocsr()
        ranked.append(row.indices[np.argsort(-row.data)][:top_k].astype(np.int64))
    return ranked


def argsort(counts: sp.csr_matrix, medians: npt.NDArray[np.float64], top_k: int) -> list[I64]:
    """Rank cell by cell with numpy's default sort: the order of ties is arbitrary.

    Args:
        counts: (n_cells, n_delivered).
        medians: float64 (n_delivered,).
        top_k: genes kept per cell.
    """
    keys = -(counts.data / medians[counts.indices]).astype(np.float32)
    return [indices[np.argsort(key)[:top_k]].astype(np.int64) for indices, key in _cells(counts, keys)]


def stable_argsort(counts: sp.csr_matrix, medians: npt.NDArray[np.float64], top_k: int) -> list[I64]:
    """Rank cell by cell with a stable sort: ties keep the order of the columns.

    Args:
        counts: (n_cells, n_delivered).
        medians: float64 (n_delivered,).
        top_k: genes kept per cell.
    """
    keys = -(counts.data / medians[counts.indices]).astype(np.float32)
    return [indices[np.argsort(key, kind="stable")[:top_k]].astype(np.int64) for indices, key in _cells(counts, keys)]


def packed_sort(counts: sp.csr_matrix, medians: npt.NDArray[np.float64], top_k: int) -> list[I64]:
    """Rank cell by cell by sorting uint64s that hold both key and column: ties keep the order of the columns.

    Args:
        counts: (n_cells, n_delivered).
        medians: float64 (n_delivered,).
        top_k: genes kept per cell.
    """
    keys = (counts.data / medians[counts.indices]).astype(np.float32).view(np.uint32)
    # The highest bit of a positive float is 0. The complement of the others sorts in descending order.
    packed = (np.uint64(0x7FFFFFFF) ^ keys.astype(np.uint64)) << np.uint64(32) | counts.indices.astype(np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    return [(np.sort(cell)[:top_k] & mask).astype(np.int64) for _, cell in _cells(counts, packed)]


def _cells(
    counts: sp.csr_matrix, values: npt.NDArray[np.generic]
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.generic]]]:
    ends = counts.indptr[1:-1]
    return list(zip(np.split(counts.indices, ends), np.split(values, ends), strict=True))


#: All of them, by their names in tables.
RANKINGS: dict[str, Ranking] = {
    "scipy, row by row": scipy_rows,
    "numpy argsort": argsort,
    "numpy stable argsort": stable_argsort,
    "numpy sort of packed uint64": packed_sort,
}


class Batcher:
    """Turns the counts of a batch of cells into the padded batch that a model takes.

    Args:
        tokenizer: the tokenizer.
        columns: the genes of the file, as the tokenizer bound them.
    """

    def __init__(self, tokenizer: Tokenizer, columns: GeneColumns) -> None:
        self._tokenizer, self._columns = tokenizer, columns
        self._medians = medians_of_columns(tokenizer, columns)
        self._tokens = columns.numbers.astype(np.int64) + FIRST_GENE

    def by_rows(self, counts: sp.csr_matrix) -> I64:
        """Rank cell by cell with numpy: int64 (n_cells, top_k)."""
        ranked = argsort(counts, self._medians, self._tokenizer.top_k)
        ids = np.full((counts.shape[0], self._tokenizer.top_k), PAD, np.int64)
        for cell, genes in enumerate(ranked):
            ids[cell, : len(genes)] = self._tokens[genes]
        return ids

    def by_kernel(self, counts: sp.csr_matrix) -> I64:
        """Rank with the tokenizer's own kernel: int64 (n_cells, top_k)."""
        tokens, indptr = self._tokenizer.encode(counts.astype(np.float64), self._columns)
        ids = np.full((counts.shape[0], self._tokenizer.top_k), PAD, np.int64)
        lengths = np.diff(indptr)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = tokens
        return ids

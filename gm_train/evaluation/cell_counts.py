"""Counts of cells as their file delivers them, and what follows from them: ranks and expression."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_shards.counts.count_loops import cell_totals, map_genes, normalise
from data_shards.tokens.tokenizer import GeneColumns, Tokenizer
from gm_train.embedding.ragged import Ragged


@dataclass(frozen=True, eq=False)
class CellCounts:
    """Counts of cells of one file.

    Attributes:
        counts: float64 (n_cells, n_delivered), over all genes of the file.
        columns: the genes of the vocabulary among them.
        tokenizer: that of the model.
    """

    counts: scipy.sparse.csr_matrix
    columns: GeneColumns
    tokenizer: Tokenizer

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.counts.shape[0])

    def take(self, cells: npt.NDArray[np.int64]) -> "CellCounts":
        """The cells of these numbers, int64 (n,), in the order given."""
        return replace(self, counts=self.counts[cells])

    def ranked(self, ranks: str) -> Ragged:
        """The tokens on "plain" or "dithered" ranks."""
        tokenizer = replace(self.tokenizer, dither={"plain": False, "dithered": True}[ranks])
        return Ragged(*tokenizer.encode(self.counts, self.columns))

    def scaled(self) -> scipy.sparse.csr_matrix:
        """Counts per 10,000 of the cell's total over all genes: float64 (n_cells, genes of the vocabulary)."""
        counts, n_genes = self.counts, len(self.tokenizer.vocabulary.genes)
        indptr, genes, values = map_genes(counts.indptr, counts.indices, counts.data, self.columns.numbers, n_genes)
        scaled = normalise(indptr, values, cell_totals(counts.indptr, counts.data), 10_000.0)
        return scipy.sparse.csr_matrix((scaled, genes, indptr), shape=(self.n_cells, n_genes))

    def expression(self) -> scipy.sparse.csr_matrix:
        """log1p of `scaled`: float32, of the same shape."""
        return self.scaled().log1p().astype(np.float32)

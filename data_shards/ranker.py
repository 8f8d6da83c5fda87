"""A tokenizer reduced to what ranks: arrays that are sent with every task."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.hashing import U64
from data_shards.kernels import cell_totals
from data_shards.ranking import rank_genes


@dataclass(frozen=True, eq=False)
class Ranked:
    """The ranked genes of cells.

    Attributes:
        genes: uint16 (n_tokens,), gene numbers, cells one after another, best-ranked gene first.
        indptr: int64 (n_cells + 1,).
        values: float32 (n_tokens,), `count / total * 10,000 / median` of each, or none; of dithered counts if these are
            ranked.
        known: how many of the counts are of genes of the vocabulary.
    """

    genes: npt.NDArray[np.uint16]
    indptr: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    known: int


@dataclass(frozen=True, eq=False)
class Ranker:
    """What ranking needs of a tokenizer.

    Attributes:
        medians: float64 (n_genes,).
        gene_hashes: uint64 (n_genes,), `hash_string` of the gene ids.
        top_k: most tokens of a cell.
        dither: rank dithered counts.
    """

    medians: npt.NDArray[np.float64]
    gene_hashes: U64
    top_k: int
    dither: bool

    def rank(self, counts: sp.csr_matrix, numbers: npt.NDArray[np.int32], with_values: bool = False) -> Ranked:
        """Rank the genes of cells; see `Tokenizer.encode`.

        Args:
            counts: csr_matrix (n_cells, n_delivered), float64, without repeated columns.
            numbers: int32 (n_delivered,), number of each delivered gene in the vocabulary or -1.
            with_values: return the values too.
        """
        above = counts.data > 0
        if not above.all():
            data = np.where(above, counts.data, 0)
            counts = sp.csr_matrix((data, counts.indices, counts.indptr), counts.shape, copy=True)
            counts.eliminate_zeros()
        return Ranked(
            *rank_genes(
                counts.indptr,
                counts.indices,
                counts.data,
                numbers,
                cell_totals(counts.indptr, counts.data),
                np.diff(counts.indptr).astype(np.int64),
                self.medians,
                self.gene_hashes,
                self.top_k,
                self.dither,
                with_values,
            )
        )

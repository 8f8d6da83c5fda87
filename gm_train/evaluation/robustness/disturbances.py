"""Disturb the counts of cells: shallower sequencing, genes that are not measured, another chemistry.

Each molecule of a gene is kept with a probability of its gene, independently: a count n becomes Binomial(n, p).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse

from gm_train.evaluation.cell_counts import CellCounts

#: Share of the genes that a panel does not measure.
DROPPED = 0.5
#: Another chemistry keeps a molecule with probability min(1, depth * exp(spread * z)), z ~ N(0, 1) for each gene.
CHEMISTRY_DEPTH, CHEMISTRY_SPREAD = 0.3, 1.0

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Disturbance:
    """One way to disturb counts.

    Attributes:
        key: the end of its columns' names in `eval.json`.
        heading: of its columns in tables.
        capture: takes a number of genes and a generator; returns the probability that a molecule of each gene is kept,
            float64 (n_genes,).
    """

    key: str
    heading: str
    capture: Callable[[int, np.random.Generator], F64]


def _depth(share: float) -> Callable[[int, np.random.Generator], F64]:
    return lambda n_genes, generator: np.full(n_genes, share)


def _drop_genes(n_genes: int, generator: np.random.Generator) -> F64:
    return (generator.random(n_genes) >= DROPPED).astype(np.float64)


def _chemistry(n_genes: int, generator: np.random.Generator) -> F64:
    return np.minimum(1.0, CHEMISTRY_DEPTH * np.exp(CHEMISTRY_SPREAD * generator.standard_normal(n_genes)))


DISTURBANCES = (
    Disturbance("counts_50", "50 % counts", _depth(0.5)),
    Disturbance("counts_20", "20 % counts", _depth(0.2)),
    Disturbance("counts_5", "5 % counts", _depth(0.05)),
    Disturbance("genes", "half the genes", _drop_genes),
    Disturbance("chemistry", "chemistry", _chemistry),
)


def thin(counts: scipy.sparse.csr_matrix, capture: F64, generator: np.random.Generator) -> scipy.sparse.csr_matrix:
    """Keep each molecule with the probability of its gene.

    Args:
        counts: whole float64 (n_cells, n_genes).
        capture: float64 (n_genes,), 0 to 1.
        generator: draws.

    Returns:
        float64 (n_cells, n_genes), without stored zeros.
    """
    kept = generator.binomial(counts.data.astype(np.int64), capture[counts.indices]).astype(np.float64)
    thinned = scipy.sparse.csr_matrix((kept, counts.indices, counts.indptr), counts.shape, copy=True)
    thinned.eliminate_zeros()
    return thinned


def disturb(counts: dict[int, CellCounts], disturbance: Disturbance, seed: int) -> dict[int, CellCounts]:
    """Disturb cells of several data sets, a gene of the vocabulary in all of them alike.

    Args:
        counts: number of each data set to its counts.
        disturbance: what is done.
        seed: another one draws other genes, factors and molecules.

    Returns:
        The disturbed counts, in the same order.
    """
    disturbed = {}
    for which, cells in counts.items():
        numbers = cells.columns.numbers
        # Each data set has the same draw, whatever genes it has. Genes outside of the vocabulary have their own.
        of_vocabulary = disturbance.capture(len(cells.tokenizer.vocabulary.genes), np.random.default_rng([seed, 0]))
        generator = np.random.default_rng([seed, 1, which])
        capture = disturbance.capture(len(numbers), generator)
        capture[numbers >= 0] = of_vocabulary[numbers[numbers >= 0]]
        disturbed[which] = replace(cells, counts=thin(cells.counts, capture, generator))
    return disturbed

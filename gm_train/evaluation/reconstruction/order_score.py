"""Compare reconstructed orders of genes with the true ones."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from scipy.stats import rankdata

from gm_train.evaluation.reconstruction.bleu import bleu

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OrderScore:
    """Scores of reconstructed orders.

    Attributes:
        named: share of positions that name the right gene, in %, mean over cells.
        spearman: rank correlation, -1 to 1, mean over cells.
        levenshtein: Levenshtein distance / number of genes, 0 (right) to 1, mean over cells.
        bleu: of all cells together, 0 to 1 (right).
    """

    named: float
    spearman: float
    levenshtein: float
    bleu: float


def spearman(truth: I64, named: I64) -> float:
    """Spearman's rank correlation of the places of the true genes with the places where they are named.

    A true gene that is named nowhere gets the middle place, (n - 1) / 2; several such genes share it. So a wrong gene
    counts by what it takes away: each leaves one true gene without a place of its own. If all true genes share one
    place, as when none is named, the correlation is 0. Equal places have their mean rank.

    Args:
        truth: int64 (n,), distinct genes in their true order, n > 1.
        named: int64 (n,), the gene named at each place; each gene once.
    """
    place = {gene: at for at, gene in enumerate(named.tolist())}
    places = np.array([place.get(gene, (len(truth) - 1) / 2) for gene in truth.tolist()])
    if (places == places[0]).all():
        return 0.0
    return float(np.corrcoef(np.arange(len(truth)), rankdata(places))[0, 1])


def score_orders(pairs: Iterable[tuple[I64, I64]]) -> OrderScore | None:
    """Score the reconstructed orders of cells.

    Args:
        pairs: for each cell, its genes in their true order and the genes named for their places, int64 (n,) each.
            Cells with one gene are left out: they have no order.

    Returns:
        The scores; None if no cell has several genes.
    """
    kept = [(truth, named) for truth, named in pairs if len(truth) > 1]
    if not kept:
        return None
    lists = [(truth.tolist(), named.tolist()) for truth, named in kept]
    return OrderScore(
        100 * float(np.mean([(truth == named).mean() for truth, named in kept])),
        float(np.mean([spearman(truth, named) for truth, named in kept])),
        float(np.mean([Levenshtein.normalized_distance(truth, named) for truth, named in lists])),
        bleu(lists),
    )

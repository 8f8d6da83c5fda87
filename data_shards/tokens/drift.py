"""Warn if the medians of other cells drift from the tokenizer's: then ranks mean something else than in training."""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.counts.count_loops import group_by_gene
from data_shards.tokens.tokenizer import Tokenizer

#: Genes with at least this many non-zero values are compared, and medians count that are off by more than this factor.
#: A gene whose median is off by 1.5 moves past about a fifth of the genes of a gut cell (SCP1884).
DRIFT_VALUES, DRIFT_FACTOR = 100, 1.5
#: Drift is reported from this share of such genes on, once the factor that most genes share is divided out. Halves of
#: the same cells, other donors and other tissue layers of SCP1884 differ in at most 0.3 % of the genes; cells of
#: another laboratory and tissue differ in 16 %, and then the order of a cell's genes correlates with 0.91.
DRIFT_SHARE = 0.1
#: Genes that are named, at most.
_NAMED = 5
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drift:
    """How far the medians of some cells are from the tokenizer's.

    Attributes:
        share: of the genes with at least `DRIFT_VALUES` counts, those whose median differs by more than `DRIFT_FACTOR`;
            0 without such genes.
        n_genes: number of genes with at least `DRIFT_VALUES` counts.
        common_factor: median over these genes of their median divided by the tokenizer's; 1 without such genes. Such a
            factor changes no order within a cell: the cells have more genes, or fewer, than those of the tokenizer.
        share_beyond: as `share`, once the common factor is divided out.
        farthest: genes that differ by more than `DRIFT_FACTOR` beyond the common factor, with what remains, farthest
            first, at most five.
    """

    share: float
    n_genes: int
    common_factor: float
    share_beyond: float
    farthest: tuple[tuple[str, float], ...]

    @property
    def is_large(self) -> bool:
        """Whether ranks mean something else than in training."""
        return self.share_beyond > DRIFT_SHARE


def compare_medians(tokenizer: Tokenizer, genes: npt.NDArray[np.int32], values: npt.NDArray[np.float64]) -> Drift:
    """Compare the medians of some cells with the tokenizer's.

    Args:
        tokenizer: has the medians to compare with.
        genes: int32 (n,), gene number of each non-zero count of the cells.
        values: float64 (n,), `count / total * 10,000` of each.
    """
    starts, grouped = group_by_gene(genes, values, len(tokenizer.medians))
    often = np.flatnonzero(np.diff(starts) >= DRIFT_VALUES)
    if not len(often):
        return Drift(0.0, 0, 1.0, 0.0, ())
    own = np.array([np.median(grouped[starts[gene] : starts[gene + 1]]) for gene in often])
    logs = np.log(own / tokenizer.medians[often])
    common = float(np.median(logs))
    beyond = logs - common
    far = np.abs(beyond) > np.log(DRIFT_FACTOR)
    farthest = np.argsort(-np.abs(beyond), kind="stable")[: min(_NAMED, int(far.sum()))]
    names = tokenizer.vocabulary.genes
    return Drift(
        float((np.abs(logs) > np.log(DRIFT_FACTOR)).mean()),
        len(often),
        float(np.exp(common)),
        float(far.mean()),
        tuple((names[often[i]], float(np.exp(beyond[i]))) for i in farthest),
    )


def measure_drift(
    name: str, tokenizer: Tokenizer, genes: npt.NDArray[np.int32], values: npt.NDArray[np.float64]
) -> Drift:
    """Compare medians as `compare_medians` does, and log a warning if too many genes differ.

    Args:
        name: of the cells' file, for the warning.
        tokenizer: has the medians to compare with.
        genes: int32 (n,), gene number of each non-zero count of the cells.
        values: float64 (n,), `count / total * 10,000` of each.
    """
    drift = compare_medians(tokenizer, genes, values)
    if drift.is_large:
        _LOG.warning(
            f"{name}: its medians drift from the tokenizer's: {drift.share_beyond:.0%} of the {drift.n_genes:,} genes "
            f"with at least {DRIFT_VALUES} counts here differ by more than a factor of {DRIFT_FACTOR:g} beyond the "
            f"factor that most share ({drift.common_factor:.2g}), so its ranks mean something else than in training"
        )
    return drift

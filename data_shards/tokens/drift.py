"""Warn if the medians of other cells drift from the tokenizer's: then ranks mean something else than in training."""

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.counts.count_loops import group_by_gene
from data_shards.tokens.tokenizer import Tokenizer

#: Genes with at least this many non-zero values are compared, and medians count that are off by more than this factor.
DRIFT_VALUES, DRIFT_FACTOR = 100, 1.5
#: Drift is reported from this share of such genes on.
DRIFT_SHARE = 0.2
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drift:
    """How far the medians of some cells are from the tokenizer's.

    Attributes:
        share: of the genes with at least `DRIFT_VALUES` counts, those whose median differs by more than `DRIFT_FACTOR`;
            0 without such genes.
        n_genes: number of genes with at least `DRIFT_VALUES` counts.
    """

    share: float
    n_genes: int


def measure_drift(
    name: str, tokenizer: Tokenizer, genes: npt.NDArray[np.int32], values: npt.NDArray[np.float64]
) -> Drift:
    """Compare medians with the tokenizer's, and log a warning if too many genes differ.

    Args:
        name: of the cells' file, for the warning.
        tokenizer: has the medians to compare with.
        genes: int32 (n,), gene number of each non-zero count of the cells.
        values: float64 (n,), `count / total * 10,000` of each.
    """
    starts, grouped = group_by_gene(genes, values, len(tokenizer.medians))
    often = np.flatnonzero(np.diff(starts) >= DRIFT_VALUES)
    own = np.array([np.median(grouped[starts[gene] : starts[gene + 1]]) for gene in often])
    far = np.abs(np.log(own / tokenizer.medians[often])) > np.log(DRIFT_FACTOR)
    drift = Drift(float(far.mean()) if len(often) else 0.0, len(often))
    if drift.share > DRIFT_SHARE:
        _LOG.warning(
            f"{name}: its medians drift from the tokenizer's: {drift.share:.0%} of the {drift.n_genes:,} genes with at "
            f"least {DRIFT_VALUES} counts here differ by more than a factor of {DRIFT_FACTOR:g}, so its ranks mean "
            "something else than in training"
        )
    return drift

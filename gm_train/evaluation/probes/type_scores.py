"""Scores of predicted cell types beyond accuracy: recall by number of training cells, rare types, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import recall_score, roc_auc_score

#: Smallest number of training cells of each bin of types. A type with fewer than ten cannot fill the ten neighbours
#: of the kNN probe; each further bin has about three times as many.
SUPPORT_BINS = (1, 10, 30, 100)
#: Types with fewer training cells are rare.
RARE = 30
#: Bins of confidence of the expected calibration error, as in Guo et al. 2017.
CALIBRATION_BINS = 15

Texts = npt.NDArray[np.str_]


def bin_of(n_cells: int) -> int:
    """The bin of a type with `n_cells` training cells: its smallest number of training cells."""
    return max(start for start in SUPPORT_BINS if start <= n_cells)


def bin_name(start: int) -> str:
    """The numbers of training cells of a bin, such as "10-29"."""
    later = [other for other in SUPPORT_BINS if other > start]
    return f"{start}-{later[0] - 1}" if later else f"{start}+"


def recall_by_support(truth: Texts, guesses: Texts, support: Mapping[str, int]) -> dict[int, float]:
    """Mean recall of the types of each bin, in %; bins without a type are left out.

    Args:
        truth, guesses: types of held-out cells, (n_cells,).
        support: each type of `truth` to its number of training cells, at least 1.
    """
    types = np.unique(truth)
    recalls = recall_score(truth, guesses, labels=types, average=None, zero_division=0.0)
    bins = np.array([bin_of(support[name]) for name in types])
    return {start: 100 * float(recalls[bins == start].mean()) for start in SUPPORT_BINS if (bins == start).any()}


def rare_types(truth: Texts, support: Mapping[str, int]) -> list[str]:
    """The types of held-out cells with fewer than `RARE` training cells, if there are other held-out cells, too.

    Args:
        truth: types of held-out cells, (n_cells,).
        support: each of them to its number of training cells.
    """
    types = np.unique(truth).tolist()
    return [name for name in types if support[name] < RARE] if len(types) > 1 else []


def rare_auroc(
    truth: Texts, probabilities: npt.NDArray[np.float64], classes: Sequence[str], rare: Sequence[str]
) -> float:
    """Mean area under the ROC curve of rare types, each against all other cells.

    A type that the classifier does not know counts with 0.5, as chance does.

    Args:
        truth: types of held-out cells, (n_cells,).
        probabilities: float64 (n_cells, n_classes).
        classes: the types that the columns are of.
        rare: the types to score, at least one; from `rare_types`.
    """
    column = {name: number for number, name in enumerate(classes)}
    areas = [
        float(roc_auc_score(truth == name, probabilities[:, column[name]])) if name in column else 0.5 for name in rare
    ]
    return sum(areas) / len(areas)


def expected_calibration_error(truth: Texts, probabilities: npt.NDArray[np.float64], classes: Sequence[str]) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by their cells: 0 to 1.

    Guo et al. 2017 (arXiv 1706.04599), equation 3, with bins of equal width. Few cells make it larger.

    Args:
        truth: types of held-out cells, (n_cells,).
        probabilities: float64 (n_cells, n_classes).
        classes: the types that the columns are of.
    """
    confidence = probabilities.max(1)
    right = np.asarray(classes)[probabilities.argmax(1)] == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    distance = np.bincount(bins, confidence - right, minlength=CALIBRATION_BINS)
    return float(np.abs(distance).sum() / len(truth))

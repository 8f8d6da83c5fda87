"""Calibrate a classifier on validation cells: how sure it must be to give a label."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import beta

from gm_train.model.classes import Calibration

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


#: Probability with which the promise about wrong labels holds, over the draw of the validation cells.
CONFIDENCE = 0.9
#: Number of thresholds that are tried.
_THRESHOLDS = 10


def calibrate(logits: F32, targets: I64, max_error: float) -> Calibration:
    """Fit a temperature (Guo et al. 2017, arXiv 1706.04599) and the threshold below which cells are unknown.

    Cells whose first class has a probability of at least the threshold get its label. The threshold is that of
    `choose_threshold`.

    Args:
        logits: float32 (n_cells, n_classes).
        targets: int64 (n_cells,), the classes; the number of classes for cells of other ones, about which the
            classifier is always wrong.
        max_error: largest share of wrong labels.
    """
    temperature = fit_temperature(logits, targets)
    # As float32, which `predict` compares with the threshold: other roundings must not decide.
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1).astype(np.float32)
    confidence, is_right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == targets
    threshold = choose_threshold(confidence, is_right, max_error)
    labelled = confidence >= (np.inf if threshold is None else threshold)
    n_wrong = int((labelled & ~is_right).sum())
    return Calibration(temperature, threshold, max_error, len(targets), int(labelled.sum()), n_wrong)


def fit_temperature(logits: F32, targets: I64) -> float:
    """The temperature, 1/20 to 20, with the smallest cross-entropy over the cells of known classes.

    Args:
        logits: float32 (n_cells, n_classes).
        targets: int64 (n_cells,), as in `calibrate`.
    """
    known = targets < logits.shape[1]
    of_known, classes = logits[known].astype(np.float64), targets[known]
    if not len(classes):
        return 1.0

    def cross_entropy(log_temperature: float) -> float:
        scaled = log_softmax(of_known / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(classes)), classes].mean())

    found = minimize_scalar(cross_entropy, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def choose_threshold(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], max_error: float
) -> float | None:
    """Choose a threshold with which at most `max_error` of the labels of new cells are wrong; None if there is none.

    Selection with guaranteed risk, in the sense of Geifman and El-Yaniv (2017, arXiv 1705.08500). Of the thresholds
    that label 100 %, 90 %, ..., 10 % of these cells, it takes the one that labels most and at which an upper bound of
    the share of wrong labels is small enough. The bound is Clopper and Pearson's, and allows for all ten thresholds.
    For new cells that are drawn like these, the share is at most `max_error` with a probability of `CONFIDENCE`. Few
    cells cannot show that errors are rare.

    Args:
        confidence: float64 (n_cells,), probability of each cell's first class.
        correct: bool (n_cells,), whether the first class is the cell's own.
        max_error: largest share of wrong labels.
    """
    ordered = np.sort(confidence)[::-1]
    for tenths in range(_THRESHOLDS, 0, -1):
        lowest = ordered[-(-len(ordered) * tenths // _THRESHOLDS) - 1]
        labelled = confidence >= lowest
        n, n_wrong = int(labelled.sum()), int((labelled & ~correct).sum())
        bound = 1.0 if n_wrong == n else beta.ppf(1 - (1 - CONFIDENCE) / _THRESHOLDS, n_wrong + 1, n - n_wrong)
        if bound <= max_error:
            below = ordered[ordered < lowest]
            # Between two cells: the last bits of a probability must not decide about either.
            return float((lowest + below[0]) / 2 if len(below) else lowest * (1 - 1e-5))
    return None

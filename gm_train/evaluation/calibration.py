"""Calibrate a classifier on validation cells: how sure it must be to give a label."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from gm_train.model.classes import Calibration

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def calibrate(logits: F32, targets: I64, max_error: float) -> Calibration:
    """Fit a temperature (Guo et al. 2017, arXiv 1706.04599) and the threshold below which cells are unknown.

    Cells whose first class has a probability of at least the threshold get its label. The threshold lets as many cells
    have one as it can with (wrong + 1) / (labelled + 1) <= max_error on these cells, as in conformal risk control
    (Angelopoulos et al. 2022, arXiv 2208.02814). The added 1 stands for the next cell: few cells cannot show that
    errors are rare.

    Args:
        logits: float32 (n_cells, n_classes).
        targets: int64 (n_cells,), the classes; the number of classes for cells of other ones, about which the
            classifier is always wrong.
        max_error: largest share of wrong labels.
    """
    temperature = fit_temperature(logits, targets)
    probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
    threshold = choose_threshold(probabilities.max(1), probabilities.argmax(1) == targets, max_error)
    labelled = probabilities.max(1) >= (np.inf if threshold is None else threshold)
    n_wrong = int((labelled & (probabilities.argmax(1) != targets)).sum())
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
    """The threshold with which most cells get a label and few enough are wrong; None if no threshold has that.

    Args:
        confidence: float64 (n_cells,), probability of each cell's first class.
        correct: bool (n_cells,), whether the first class is the cell's own.
        max_error: largest share of wrong labels, as in `calibrate`.
    """
    order = np.argsort(-confidence, kind="stable")
    n_labelled = np.arange(1, len(order) + 1)
    allowed = (np.cumsum(~correct[order]) + 1) / (n_labelled + 1) <= max_error
    # Cells of equal confidence get labels together.
    ends = np.append(confidence[order][1:] != confidence[order][:-1], True)
    possible = np.flatnonzero(allowed & ends)
    if not len(possible):
        return None
    last = possible[-1]
    below = confidence[order][last + 1] if last + 1 < len(order) else confidence[order][last] * (1 - 1e-5)
    # Between two cells: rounding must not decide about either.
    return float((confidence[order][last] + below) / 2)

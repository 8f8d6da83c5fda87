"""The threshold below which a cell is unknown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_train.evaluation.calibration import calibrate, choose_threshold, fit_temperature

CELLS = st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=80)


@given(CELLS, st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]))
def test_the_threshold_labels_as_many_cells_as_the_error_allows(cells: list[tuple[int, bool]], error: float) -> None:
    confidence = np.array([c / 20 for c, _ in cells])
    correct = np.array([ok for _, ok in cells])
    threshold = choose_threshold(confidence, correct, error)

    def bound(least: float) -> float:
        labelled = confidence >= least
        return float(((labelled & ~correct).sum() + 1) / (labelled.sum() + 1))

    # Every threshold that there is, by trying all.
    allowed = [c for c in np.unique(confidence) if bound(c) <= error]
    if threshold is None:
        assert not allowed
    else:
        assert (confidence >= threshold).sum() == (confidence >= min(allowed)).sum()
        assert not np.isin(threshold, confidence)


def test_errors_among_new_cells_are_as_rare_as_asked() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        # Confidence is the probability of being right, on 200 cells to calibrate with and on 2,000 new ones.
        confidence = rng.beta(4, 1.5, 2_200)
        correct = rng.random(2_200) < confidence
        threshold = choose_threshold(confidence[:200], correct[:200], 0.1)
        if threshold is not None:
            labelled = confidence[200:] >= threshold
            shares.append((labelled & ~correct[200:]).sum() / max(1, labelled.sum()))
    assert len(shares) > 200
    assert np.mean(shares) <= 0.1


@pytest.mark.parametrize("true_temperature", [0.25, 1.0, 4.0])
def test_the_temperature_of_logits_that_are_too_large_or_small(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (4_000, 5))
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from the softmax of the logits
    found = fit_temperature((logits * true_temperature).astype(np.float32), targets)
    assert found == pytest.approx(true_temperature, rel=0.1)


def test_cells_of_other_classes_are_always_wrong() -> None:
    logits = np.tile(np.array([[8.0, 0.0]], np.float32), (40, 1))
    right = np.zeros(40, np.int64)
    sure = calibrate(logits, right, 0.1)
    assert (sure.n_cells, sure.n_labelled, sure.n_wrong) == (40, 40, 0)
    other = right.copy()
    other[:10] = 2  # the number of classes: a class that was not learned
    unsure = calibrate(logits, other, 0.1)
    assert (unsure.threshold, unsure.n_labelled) == (None, 0)
    assert calibrate(logits, np.full(40, 2), 0.1).temperature == 1.0

"""The threshold below which a cell is unknown."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from gm_train.evaluation.calibration import CONFIDENCE, calibrate, choose_threshold, fit_temperature

#: Confidences of some cells, and their probabilities of being right.
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
CELLS = st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=80)


@given(CELLS, st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]))
def test_so_few_wrong_labels_would_be_unlikely_at_a_larger_share(cells: list[tuple[int, bool]], error: float) -> None:
    confidence, correct = np.array([c / 20 for c, _ in cells]), np.array([ok for _, ok in cells])
    threshold = choose_threshold(confidence, correct, error)
    if threshold is None:
        return
    assert not np.isin(threshold, confidence)
    labelled = confidence >= threshold
    # Clopper and Pearson's bound, by its definition.
    assert binom.cdf((labelled & ~correct).sum(), labelled.sum(), error) <= (1 - CONFIDENCE) / 10 + 1e-9


def draw_certain(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The confidence is the probability of being right."""
    confidence = rng.beta(4, 1.5, n)
    return confidence, confidence


def draw_uninformative(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The confidence says nothing, and more are wrong than may be."""
    return rng.random(n), np.full(n, 0.85)


def draw_weak(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The confidence says little, and no threshold has so few wrong labels."""
    confidence = rng.random(n)
    return confidence, 0.78 + 0.1 * confidence


@pytest.mark.parametrize("n_cells", [20, 200, 2000])
@pytest.mark.parametrize("draw", [draw_certain, draw_uninformative, draw_weak])
def test_promises_are_kept_as_often_as_promised(
    draw: Callable[..., tuple[np.ndarray, np.ndarray]], n_cells: int
) -> None:
    rng = np.random.default_rng(0)
    broken, n_draws = 0, 300
    for _ in range(n_draws):
        confidence, right = draw(rng, n_cells)
        threshold = choose_threshold(confidence, rng.random(n_cells) < right, 0.1)
        if threshold is not None:
            many, right = draw(rng, 20_000)
            broken += bool((1 - right[many >= threshold]).mean() > 0.1)
    # Three standard deviations of the share that may be broken.
    assert broken / n_draws <= (1 - CONFIDENCE) + 3 * math.sqrt((1 - CONFIDENCE) * CONFIDENCE / n_draws)


def test_a_classifier_that_is_right_labels_all_cells_once_there_are_enough() -> None:
    confidence = np.linspace(0.5, 1, 200)
    threshold = choose_threshold(confidence, np.ones(200, bool), 0.1)
    assert threshold is not None
    assert threshold < 0.5
    assert choose_threshold(confidence[:20], np.ones(20, bool), 0.1) is None


@pytest.mark.parametrize("true_temperature", [0.25, 1.0, 4.0])
def test_the_temperature_of_logits_that_are_too_large_or_small(true_temperature: float) -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (4_000, 5))
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from the softmax of the logits
    found = fit_temperature((logits * true_temperature).astype(np.float32), targets)
    assert found == pytest.approx(true_temperature, rel=0.1)


def test_cells_of_other_classes_are_always_wrong() -> None:
    logits = np.tile(np.array([[8.0, 0.0]], np.float32), (80, 1))
    right = np.zeros(80, np.int64)
    sure = calibrate(logits, right, 0.1)
    assert (sure.n_cells, sure.n_labelled, sure.n_wrong) == (80, 80, 0)
    other = right.copy()
    other[:20] = 2  # the number of classes: a class that was not learned
    unsure = calibrate(logits, other, 0.1)
    assert (unsure.threshold, unsure.n_labelled) == (None, 0)
    assert calibrate(logits, np.full(80, 2), 0.1).temperature == 1.0


def test_probabilities_that_float32_cannot_tell_apart_are_labelled_together() -> None:
    # Of 60 cells whose probabilities round to 1, half are wrong: bits that `predict` does not see must not choose.
    logits = np.zeros((60, 2), np.float32)
    logits[:30, 0], logits[30:, 0] = 60, 40
    found = calibrate(logits, np.repeat([0, 1], 30), 0.1)
    assert found.threshold is None

"""Probes: the cells they are fitted and scored on, and labels that cannot be probed."""

import numpy as np
import pytest

from gm_train.evaluation.probes.probes import ProbeSplit, probe

LABELS = np.array(["a", "b", None, "a", "b", "rare", "a", None, "b"], dtype=object)
HELD_OUT = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0], dtype=bool)


def separable(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make features that separate two types, and the types."""
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(n) < 0.5, "a", "b").astype(object)
    features = rng.normal(size=(n, 5))
    features[labels == "a", 0] += 8
    return features.astype(np.float32), labels


def test_cells_that_no_probe_can_predict_are_left_out_and_counted() -> None:
    split = ProbeSplit.of(LABELS, HELD_OUT)
    assert split.train.tolist() == [0, 1, 6, 8]
    assert split.held_out.tolist() == [3, 4]
    assert split.unseen == {"rare": 1}
    assert split.unlabelled == 2
    assert split.usable


@pytest.mark.parametrize("labels", [["a", "a", "a", "a"], ["a", "b", None, None], [None] * 4])
def test_a_single_label_or_no_labelled_held_out_cell_cannot_be_probed(labels: list[str | None]) -> None:
    assert not ProbeSplit.of(np.array(labels, dtype=object), np.array([False, False, True, True])).usable


def test_informative_features_are_probed_well_and_noise_is_not() -> None:
    features, labels = separable(200, seed=0)
    split = ProbeSplit.of(labels, np.arange(200) >= 150)
    good = probe(features, split, seed=0)
    assert min(good.values()) > 95
    noise = probe(np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32), split, seed=0)
    assert max(noise.values()) < 75


def test_a_seed_draws_the_training_cells_and_held_out_cells_are_never_fitted() -> None:
    features, labels = separable(120, seed=0)
    noisy = features + np.random.default_rng(2).normal(0, 6, features.shape).astype(np.float32)
    held_out = np.arange(120) >= 80
    split = ProbeSplit.of(labels, held_out)
    assert probe(noisy, split, seed=0) == probe(noisy, split, seed=0)
    assert len({probe(noisy, split, seed=seed)["linear_accuracy"] for seed in range(5)}) > 1
    # Swapped held-out labels lower the score; they would not if the probe were fitted on them.
    swapped = labels.copy()
    swapped[held_out] = np.where(labels[held_out] == "a", "b", "a")
    assert probe(features, ProbeSplit.of(swapped, held_out), seed=0)["linear_accuracy"] < 5


def test_a_label_that_the_subsample_lacks_counts_as_missed() -> None:
    features, labels = separable(60, seed=0)
    held_out = np.arange(60) >= 40
    labels[[0, 40]] = "once"
    scores = [probe(features, ProbeSplit.of(labels, held_out), seed=seed) for seed in range(4)]
    assert all(score["linear_macro_f1"] < 90 for score in scores)

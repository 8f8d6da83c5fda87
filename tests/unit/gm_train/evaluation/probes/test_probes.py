"""Probes: the cells they are fitted and scored on, and labels that cannot be probed."""

import warnings

import numpy as np
import pytest

from gm_train.evaluation.probes.probes import ProbeSplit, probe
from gm_train.evaluation.probes.type_scores import bin_of

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
    assert min(value for name, value in good.items() if name != "linear_ece") > 95
    noise = probe(np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32), split, seed=0)
    assert max(noise["linear_accuracy"], noise["knn_accuracy"]) < 75


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


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([None, None, "a", "b"], "no training cell has a label"),
        (["a", "a", "a", "a"], "all training cells that have a label have the same one, 'a'"),
        (["a", "b", "a", "b"], "only 2 training cells have a label"),
        (["a", "b", "a", "b", "b", None, "c"], "no held-out cell has a label of a training cell"),
    ],
)
def test_what_stands_against_probes_is_said(labels: list[str | None], reason: str) -> None:
    held_out = np.arange(len(labels)) >= len(labels) - 2
    split = ProbeSplit.of(np.array(labels, dtype=object), held_out)
    assert split.obstacle == reason
    assert not split.usable


def test_fewer_training_cells_than_neighbours_are_all_asked() -> None:
    features, labels = separable(40, seed=0)
    labels[:4], labels[4:7] = "a", "b"
    held_out = np.arange(40) >= 7
    scores = probe(features, ProbeSplit.of(labels, held_out), seed=0)
    # The six cells of the subsample are fewer than ten neighbours: the larger type always wins, and is never wrong.
    assert scores["knn_accuracy"] == pytest.approx(100 * np.mean(labels[held_out] == "a"))
    assert scores["knn_recall_1"] == 50.0


def test_a_type_with_one_cell_has_a_bin_and_an_area_and_breaks_no_fold() -> None:
    features, labels = separable(60, seed=0)
    held_out = np.arange(60) >= 40
    labels[[0, 40]] = "once"
    features[[0, 40], 1] = 30
    split = ProbeSplit.of(labels, held_out)
    assert split.support["once"] == 1
    runs = [probe(features, split, seed) for seed in range(8)]
    assert len({frozenset(run) for run in runs}) == 1
    # In some subsamples it is missing, and then its cell is missed; where it is known, its features give it away.
    recalls = {run["linear_recall_1"] for run in runs}
    assert recalls == {0.0, 100.0}
    # One of all cells has another type: some folds then have nothing to tell apart.
    few = np.array(["a"] * 5 + ["once"] + ["a", "once"], dtype=object)
    lone = ProbeSplit.of(few, np.arange(8) >= 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(6):
            scores = probe(np.eye(8, dtype=np.float32)[[0, 0, 0, 0, 0, 1, 0, 1]], lone, seed)
            assert 0 <= scores["rare_auroc"] <= 1


def test_bins_and_rare_types_follow_the_training_cells() -> None:
    features, labels = separable(300, seed=1)
    held_out = np.arange(300) >= 200
    labels[np.r_[0:12, 200:206]] = "rare"
    features[labels == "rare", 2] += 9
    scores = probe(features, ProbeSplit.of(labels, held_out), seed=0)
    bins = {10, *(bin_of(int((labels[:200] == name).sum())) for name in "ab")}
    assert {key for key in scores if "recall" in key} == {f"{p}_recall_{n}" for p in ("linear", "knn") for n in bins}
    assert scores["linear_recall_10"] == 100.0
    assert scores["rare_auroc"] == 1.0
    assert 0 <= scores["linear_ece"] < 20
    noise = np.random.default_rng(2).normal(size=features.shape).astype(np.float32)
    poor = probe(noise, ProbeSplit.of(labels, held_out), seed=0)
    assert poor["linear_recall_10"] < 50
    assert 0.1 < poor["rare_auroc"] < 0.9

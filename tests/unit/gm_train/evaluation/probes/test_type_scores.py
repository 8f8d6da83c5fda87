"""Scores of cell types beyond accuracy, against hand-made cases and a library's values."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from gm_train.evaluation.probes.type_scores import (
    CALIBRATION_BINS,
    RARE,
    bin_name,
    bin_of,
    expected_calibration_error,
    rare_auroc,
    rare_types,
    recall_by_support,
)


def test_a_type_is_in_the_bin_of_its_training_cells() -> None:
    assert [bin_of(n) for n in (1, 9, 10, 29, 30, 99, 100, 5_000)] == [1, 1, 10, 10, 30, 30, 100, 100]
    assert [bin_name(start) for start in (1, 10, 30, 100)] == ["1-9", "10-29", "30-99", "100+"]


def test_recall_is_the_mean_over_the_types_of_a_bin() -> None:
    truth = np.array(["a", "a", "b", "b", "b", "b", "c"])
    guesses = np.array(["a", "c", "b", "b", "b", "a", "a"])
    support = {"a": 3, "b": 200, "c": 9, "never held out": 50}
    assert recall_by_support(truth, guesses, support) == {1: pytest.approx(100 * (0.5 + 0) / 2), 100: 75.0}


def test_rare_types_are_held_out_with_few_training_cells_and_beside_others() -> None:
    support = {"a": RARE - 1, "b": RARE, "c": 1}
    assert rare_types(np.array(["a", "b", "b"]), support) == ["a"]
    assert rare_types(np.array(["c", "b", "a"]), support) == ["a", "c"]
    # Nothing to tell apart.
    assert rare_types(np.array(["a", "a"]), support) == []


def test_the_area_of_rare_types_is_the_mean_of_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(["a", "b", "c"], [5, 8, 40])
    probabilities = rng.dirichlet(np.ones(3), len(truth))
    expected = [roc_auc_score(truth == name, probabilities[:, column]) for column, name in enumerate("ab")]
    assert rare_auroc(truth, probabilities, list("abc"), ["a", "b"]) == pytest.approx(np.mean(expected))
    # Perfect, and by chance for a type that the classifier does not know.
    perfect = (truth[:, None] == np.array(["a", "c"])).astype(float)
    assert rare_auroc(truth, perfect, ["a", "c"], ["a"]) == 1.0
    assert rare_auroc(truth, perfect, ["a", "c"], ["a", "b"]) == 0.75


def test_the_calibration_error_agrees_with_torchmetrics() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(4, 0.3), 500)
    classes = list("abcd")
    truth = np.array(classes)[rng.integers(0, 4, 500)]
    numbers = np.array([classes.index(name) for name in truth])
    found = expected_calibration_error(truth, probabilities, classes)
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(numbers), num_classes=4, n_bins=CALIBRATION_BINS, norm="l1"
    )
    assert found == pytest.approx(float(theirs), abs=1e-6)


def test_a_classifier_that_is_as_right_as_it_says_has_no_calibration_error() -> None:
    truth = np.array(["a"] * 3 + ["b"])
    as_sure = np.tile([0.75, 0.25], (4, 1))
    assert expected_calibration_error(truth, as_sure, ["a", "b"]) == pytest.approx(0.0)
    too_sure = np.tile([1.0, 0.0], (4, 1))
    assert expected_calibration_error(truth, too_sure, ["a", "b"]) == pytest.approx(0.25)

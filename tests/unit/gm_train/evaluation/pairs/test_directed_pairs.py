"""Directed pairs: which are chosen, how they are matched, and how they are scored."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.metrics import roc_auc_score

from gm_train.evaluation.pairs.directed_pairs import (
    MAX_PAIRS,
    MAX_TARGETS,
    choose_pairs,
    draw_unrelated,
    regression_effects,
    score_directed,
)


def random_pairs(n_regulators: int, n_targets: int, each: int) -> np.ndarray:
    """Regulators 0, 1, ...; targets from `n_regulators` on."""
    rng = np.random.default_rng(0)
    return np.array(
        [(r, n_regulators + t) for r in range(n_regulators) for t in rng.choice(n_targets, each, replace=False)]
    )


def test_no_regulator_has_most_of_the_chosen_pairs() -> None:
    pairs = np.concatenate([random_pairs(100, 300, 30), np.array([[500, 200 + i] for i in range(300)])])
    chosen = choose_pairs(pairs, np.random.default_rng(0))
    assert len(chosen) == MAX_PAIRS
    assert np.unique(chosen[:, 0], return_counts=True)[1].max() == MAX_TARGETS
    assert {tuple(pair) for pair in chosen.tolist()} <= {tuple(pair) for pair in pairs.tolist()}
    assert len(np.unique(chosen, axis=0)) == MAX_PAIRS
    few = random_pairs(3, 30, 5)
    np.testing.assert_array_equal(choose_pairs(few, np.random.default_rng(0)), np.unique(few, axis=0))
    assert choose_pairs(few[:0], np.random.default_rng(0)).shape == (0, 2)


def test_unrelated_pairs_keep_the_regulator_and_match_the_target() -> None:
    pairs = random_pairs(10, 60, 12)
    known = np.concatenate([pairs, [[0, 1]]])  # a chain: what 1 regulates, 0 regulates through it
    frequency = np.random.default_rng(1).random(70)
    forbidden = 15
    drawn = draw_unrelated(pairs, known, frequency, lambda p: p[:, 1] != forbidden, np.random.default_rng(0))
    found = drawn[:, 1] >= 0
    assert found.mean() > 0.9
    np.testing.assert_array_equal(drawn[found, 0], pairs[found, 0])
    linked = {tuple(pair) for pair in known.tolist()} | {(0, t) for r, t in pairs.tolist() if r == 1}
    assert not linked & {tuple(pair) for pair in drawn[found].tolist()}
    assert forbidden not in drawn[:, 1]
    assert set(drawn[found, 1].tolist()) <= set(pairs[:, 1].tolist())
    difference = frequency[drawn[found, 1]] - frequency[pairs[found, 1]]
    assert np.abs(difference).max() < 0.45  # of a fifth
    assert abs(difference.mean()) < 0.05


def test_without_any_other_target_a_pair_stays_unmatched() -> None:
    pairs = np.array([[0, 1], [0, 2]])
    drawn = draw_unrelated(pairs, pairs, np.ones(3), lambda p: np.ones(len(p), np.bool_), np.random.default_rng(0))
    assert drawn.tolist() == [[-1, -1], [-1, -1]]


def test_scores_agree_with_scikit_learn_and_resample_regulators() -> None:
    rng = np.random.default_rng(0)
    regulators = np.repeat(np.arange(20), 10)
    forward, unrelated = rng.normal(0.7, 1, 200).round(1), rng.normal(0, 1, 200).round(1)
    backward = rng.normal(0.2, 1, 200).round(1)
    score = score_directed(forward, backward, unrelated, regulators)
    truth = np.arange(400) < 200
    assert score.detection == pytest.approx(100 * roc_auc_score(truth, np.concatenate([forward, unrelated])))
    assert score.direction == pytest.approx(100 * np.mean((forward > backward) + 0.5 * (forward == backward)))
    assert score.resampled.mean(0) == pytest.approx([score.detection, score.direction], abs=1)
    # Pairs of one regulator that agree are one observation, not ten.
    same = score_directed(np.repeat(rng.normal(size=20), 10), np.zeros(200), unrelated, regulators)
    assert same.resampled[:, 1].std() > 2 * score.resampled[:, 1].std()


def test_symmetric_scores_and_ties_are_at_chance() -> None:
    scores = np.random.default_rng(0).random(50)
    assert score_directed(scores, scores, scores[::-1], np.arange(50)).direction == 50
    assert score_directed(np.zeros(50), np.zeros(50), np.zeros(50), np.arange(50)).detection == 50


def test_regression_effects_are_the_coefficients_of_a_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=(3000, 1))
    targets = source @ rng.choice([-1.0, 1.0], (1, 6)) + rng.normal(size=(3000, 6))
    x = np.abs(np.concatenate([source, targets, rng.normal(size=(3000, 3))], axis=1) + 5).astype(np.float32)
    genes = np.array([4, 0, 2])
    effects = regression_effects(scipy.sparse.csr_matrix(x), genes)
    ridge = 0.1 * x.astype(np.float64).var(0, ddof=1).mean() * (len(x) - 1)
    centred = x.astype(np.float64) - x.mean(0)
    for j, target in enumerate(genes):
        others = np.setdiff1d(np.arange(10), target)
        a = centred[:, others]
        beta = np.linalg.solve(a.T @ a + ridge * np.eye(9), a.T @ centred[:, target])
        for i, gene in enumerate(genes):
            if i != j:
                assert effects[i, j] == pytest.approx(beta[list(others).index(gene)], abs=1e-6)
    # One source of six targets: it tells more about a target than a target about it.
    assert abs(effects[1, 0]) > abs(effects[0, 1])

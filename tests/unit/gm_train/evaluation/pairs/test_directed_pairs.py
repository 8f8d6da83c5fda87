"""Directed pairs: which are chosen, how they are matched, and how they are scored."""

import numpy as np
import pytest
import scipy.sparse

from gm_train.evaluation.pairs.directed_pairs import (
    MAX_PAIRS,
    MAX_TARGETS,
    RESAMPLES,
    DirectedScore,
    better_signs,
    choose_pairs,
    draw_unrelated,
    regression_effects,
    score_directed,
    summarise,
)


def random_pairs(n_regulators: int, n_targets: int, each: int) -> np.ndarray:
    """Regulators 0, 1, ...; targets from `n_regulators` on."""
    rng = np.random.default_rng(0)
    return np.array(
        [(r, n_regulators + t) for r in range(n_regulators) for t in rng.choice(n_targets, each, replace=False)]
    )


@pytest.mark.parametrize(("n_regulators", "most"), [(150, 2), (60, 4), (12, 16)])
def test_many_regulators_stay_many_and_have_equally_many_pairs(n_regulators: int, most: int) -> None:
    pairs = np.concatenate([random_pairs(n_regulators, 300, 30), np.array([[500, 200 + i] for i in range(300)])])
    chosen = choose_pairs(pairs, np.random.default_rng(0))
    assert len(chosen) == MAX_PAIRS
    regulators, counts = np.unique(chosen[:, 0], return_counts=True)
    assert len(regulators) == n_regulators + 1
    assert (counts.min(), counts.max()) == (MAX_PAIRS // (n_regulators + 1), most)
    assert {tuple(pair) for pair in chosen.tolist()} <= {tuple(pair) for pair in pairs.tolist()}
    assert len(np.unique(chosen, axis=0)) == MAX_PAIRS
    few = random_pairs(3, 30, 5)
    one = np.concatenate([few, [[500, 200 + i] for i in range(300)]])
    assert len(choose_pairs(one, np.random.default_rng(0))) == len(few) + MAX_TARGETS
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


def test_each_pair_is_compared_with_its_own_unrelated_pair() -> None:
    """All scores of the second regulator are higher; that is no knowledge of its targets."""
    pairs = np.array([[0, 2], [0, 3], [1, 4], [1, 5]])
    forward, unrelated = np.array([1.0, 2.0, 11.0, 12.0]), np.array([2.0, 2.0, 10.0, 13.0])
    assert score_directed(forward, np.zeros(4), unrelated, pairs).detection == 100 * (0 + 0.5 + 1 + 0) / 4


def test_pairs_of_one_gene_that_agree_are_one_observation() -> None:
    """The spread over resamples is that of as many observations as there are regulators, or targets."""
    rng = np.random.default_rng(0)
    regulators, targets = (genes.ravel() for genes in np.divmod(np.arange(400), 20))
    pairs = np.stack([regulators, 100 + targets], axis=1)
    sides = {}
    for name, effect in (("pair", rng.normal(size=400)), ("regulator", rng.normal(size=20)[regulators]),
                         ("target", rng.normal(size=20)[targets])):  # fmt: skip
        score = score_directed(effect, np.zeros(400), rng.normal(size=400), pairs)
        assert score.direction == pytest.approx(100 * np.mean(effect > 0))
        assert score.resampled.shape == (RESAMPLES, 2)
        assert score.resampled.mean(0) == pytest.approx([score.detection, score.direction], abs=1.5)
        sides[name] = score.resampled[:, 1].std()
    assert sides["regulator"] == pytest.approx(100 * 0.5 / np.sqrt(20), rel=0.25)
    assert sides["target"] == pytest.approx(100 * 0.5 / np.sqrt(20), rel=0.25)
    assert sides["pair"] < 0.5 * min(sides["regulator"], sides["target"])


def test_resamples_without_any_pair_are_left_out() -> None:
    pairs = np.array([[0, 3], [1, 4], [2, 5]])
    resampled = score_directed(np.ones(3), np.zeros(3), np.zeros(3), pairs).resampled
    assert 0 < len(resampled) < RESAMPLES
    assert (resampled == 100).all()


def test_symmetric_scores_and_ties_are_at_chance() -> None:
    scores = np.random.default_rng(0).random(50)
    pairs = np.arange(100).reshape(50, 2)
    assert score_directed(scores, scores, scores[::-1], pairs).direction == 50
    assert score_directed(np.zeros(50), np.zeros(50), np.zeros(50), pairs).detection == 50


def test_the_better_sign_of_each_column_is_that_of_all_runs() -> None:
    runs = [
        DirectedScore(60.0, 20.0, np.array([[61.0, 25.0], [59.0, 15.0]])),
        DirectedScore(48.0, 30.0, np.array([[50.0, 40.0], [46.0, 20.0]])),
    ]
    first, second = better_signs(runs)
    assert (first.detection, first.direction, second.detection, second.direction) == (60, 80, 48, 70)
    assert second.resampled.tolist() == [[50, 60], [46, 80]]
    figures, intervals = summarise([first, second])
    assert figures["direction"] == {"mean": 75.0, "sd": pytest.approx(np.std([75, 85, 60, 80], ddof=1))}
    assert intervals["detection"] == [pytest.approx(46.3), pytest.approx(60.85)]


def test_regression_effects_are_the_coefficients_of_a_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=(3000, 1))
    targets = source @ rng.choice([-1.0, 1.0], (1, 6)) + rng.normal(size=(3000, 6))
    x = np.abs(np.concatenate([source, targets, rng.normal(size=(3000, 3))], axis=1) + 5)
    x *= rng.permutation(np.geomspace(0.1, 10, 10))  # the units of a gene do not matter
    x = np.concatenate([x, np.ones((3000, 1))], axis=1).astype(np.float32)  # nor does a constant gene
    genes = np.array([4, 0, 2])
    effects = regression_effects(scipy.sparse.csr_matrix(x), genes)
    assert np.isfinite(regression_effects(scipy.sparse.csr_matrix(x), np.array([4, 10]))).all()
    ridge = 0.1 * (len(x) - 1)
    centred = x[:, :10] - x[:, :10].mean(0, dtype=np.float64)
    centred /= centred.std(0, ddof=1)
    for j, target in enumerate(genes):
        others = np.setdiff1d(np.arange(10), target)
        a = centred[:, others]
        beta = np.linalg.solve(a.T @ a + ridge * np.eye(9), a.T @ centred[:, target])
        for i, gene in enumerate(genes):
            if i != j:
                assert effects[i, j] == pytest.approx(beta[list(others).index(gene)], abs=1e-6)
    # One source of six targets: it tells more about a target than a target about it.
    assert abs(effects[1, 0]) > abs(effects[0, 1])

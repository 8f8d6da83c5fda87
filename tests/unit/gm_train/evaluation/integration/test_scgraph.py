"""scGraph: by cases whose distances are known."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from gm_train.evaluation.integration.scgraph import MIN_BATCH, consensus_distances, scgraph, type_distances
from gm_train.evaluation.labels import Labels
from tests.support.integration_cases import names_of

pytest.importorskip("scanpy")
#: Types at 0, 1, 3, 7 and 15 on a line: no two distances between them are the same.
LINE = np.array([0.0, 1.0, 3.0, 7.0, 15.0])
NAMES = np.array([f"type {number}" for number in range(5)])


def on_a_line(places: np.ndarray, cells_each: int = 4) -> tuple[np.ndarray, Labels]:
    """Cells of five types, all of a type in one place."""
    return (
        np.repeat(places, cells_each).astype(np.float32)[:, None],
        np.repeat(NAMES.astype(object), cells_each),
    )


def column_scaled(places: np.ndarray) -> np.ndarray:
    distances = np.abs(places[:, None] - places[None])
    return np.asarray(distances / distances.max(0))


def test_distances_are_those_between_centroids_each_column_divided_by_its_largest() -> None:
    features, types = on_a_line(LINE)
    assert type_distances(features, types, NAMES) == pytest.approx(column_scaled(LINE))
    missing = type_distances(features, types, np.append(NAMES, "not there"))
    assert np.isnan(missing[5]).all()
    assert missing[:5, :5] == pytest.approx(column_scaled(LINE))


def test_a_centroid_is_a_trimmed_mean() -> None:
    """Of 20 cells the lowest and the highest 5 % of each feature are left out: one cell each."""
    features, types = on_a_line(LINE, cells_each=20)
    features[0] = 1_000.0
    features[1] = -1_000.0
    assert type_distances(features, types, NAMES) == pytest.approx(column_scaled(LINE))


def test_an_embedding_with_the_distances_of_the_consensus_scores_one() -> None:
    features, types = on_a_line(-3 * LINE + 5)
    assert scgraph(features, types, NAMES, column_scaled(LINE)) == pytest.approx(1.0)


def test_the_score_is_the_mean_of_weighted_correlations() -> None:
    """By hand, with numpy's weighted covariance."""
    moved = np.array([0.0, 9.0, 2.0, 5.0, 15.0])
    consensus, distances = column_scaled(LINE), column_scaled(moved)
    expected = []
    for i in range(5):
        others = np.arange(5) != i
        covariance = np.cov(distances[others, i], consensus[others, i], aweights=1 / consensus[others, i])
        expected.append(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
    assert scgraph(*on_a_line(moved), NAMES, consensus) == pytest.approx(np.mean(expected))
    assert np.mean(expected) < 0.9


def test_types_at_equal_distances_score_zero() -> None:
    """Islands: types are far apart and all equally far, which scIB rewards."""
    types = np.repeat(NAMES.astype(object), 4)
    islands = 100 * np.eye(5, dtype=np.float32)[np.repeat(np.arange(5), 4)]
    assert scgraph(islands, types, NAMES, column_scaled(LINE)) == pytest.approx(0.0, abs=1e-6)
    assert scgraph(np.ones_like(islands), types, NAMES, column_scaled(LINE)) == 0.0


@given(st.permutations(range(5)), st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 99))
def test_the_score_does_not_depend_on_scale_place_rotation_or_the_order_of_cells(
    order: list[int], scale: float, place: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    centres, consensus = rng.normal(size=(5, 3)), column_scaled(LINE)
    types = np.repeat(NAMES.astype(object), 3)
    features = np.repeat(centres, 3, axis=0)
    score = scgraph(features, types, NAMES, consensus)
    assert -1 <= score <= 1 + 1e-9
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    moved = rng.permutation(len(types))
    assert scgraph((features @ rotation * scale + place)[moved], types[moved], NAMES, consensus) == pytest.approx(
        score, abs=1e-6
    )
    names = np.array(order)
    assert scgraph(features, types, NAMES[names], consensus[np.ix_(names, names)]) == pytest.approx(score)


def test_a_batch_effect_is_not_in_the_consensus_and_small_batches_are_left_out() -> None:
    """Two batches of the same cells, one with all genes but the first two moved: their distances are the same."""
    rng = np.random.default_rng(0)
    _, types = on_a_line(LINE, cells_each=MIN_BATCH // 5)
    number = np.repeat(np.arange(5), MIN_BATCH // 5)
    # All distances are along one gene, beside a little noise.
    base = np.abs(rng.normal(scale=0.01, size=(MIN_BATCH, 30)))
    base[:, 0] = LINE[number]
    moved = base.copy()
    moved[:, 2:] += rng.uniform(1, 20, size=28)
    few = 20 * rng.random((MIN_BATCH - 1, 30))
    expression = scipy.sparse.csr_matrix(np.concatenate([base, moved, few]).astype(np.float32))
    all_types = np.concatenate([types, types, types[1:]])
    batches = np.repeat(np.array(["a", "b", "small"], object), [MIN_BATCH, MIN_BATCH, MIN_BATCH - 1])
    consensus = consensus_distances(expression, all_types, batches, NAMES)
    assert consensus is not None
    assert consensus == pytest.approx(column_scaled(LINE), abs=0.01)
    only_small = batches == "small"
    assert consensus_distances(expression[only_small], all_types[only_small], batches[only_small], NAMES) is None


def test_pairs_of_types_that_share_no_batch_are_not_known() -> None:
    rng = np.random.default_rng(0)
    n = MIN_BATCH
    types = np.array([f"type {i % 4}" for i in range(n)] + [f"type {1 + i % 4}" for i in range(n)], object)
    batches = np.repeat(np.array(["a", "b"], object), n)
    expression = scipy.sparse.csr_matrix(rng.poisson(2.0, size=(2 * n, 20)).astype(np.float32))
    consensus = consensus_distances(expression, types, batches, NAMES)
    assert consensus is not None
    assert np.isnan(consensus[0, 4])
    assert np.isfinite(consensus[1:4, 0]).all()
    # Three types give each one two others only: too few to correlate.
    assert consensus_distances(expression, types, batches, NAMES[:3]) is None


def test_noise_scores_near_zero_and_real_components_high(real_data: Path) -> None:
    cells = ad.read_h5ad(real_data / "scp1884_gut_1020.h5ad")
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=50)
    types, batches = names_of(cells.obs["Celltype"]), names_of(cells.obs["batch"])
    names = np.unique(types.astype(str))
    consensus = consensus_distances(scipy.sparse.csr_matrix(cells.X), types, batches, names)
    assert consensus is not None
    # scgraph-eval 0.1.2, the authors' package, gives 0.748166 ("Corr-Weighted").
    assert scgraph(cells.obsm["X_pca"], types, names, consensus) == pytest.approx(0.748166, abs=2e-4)
    noise = np.random.default_rng(0).normal(size=(cells.n_obs, 50)).astype(np.float32)
    assert abs(scgraph(noise, types, names, consensus)) < 0.2

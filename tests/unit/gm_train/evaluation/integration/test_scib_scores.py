"""The scores of scIB: those of scib-metrics' own Benchmarker, on the same cells."""

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import kneighbors_graph

from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.integration.scib_scores import NEIGHBOURS, graph_connectivity, nearest_neighbours, scib_scores
from gm_train.evaluation.labels import Labels
from tests.support.integration_cases import clusters, names_of

pytest.importorskip("scib_metrics")


def benchmarker(features: F32, types: Labels, batches: Labels, exact: bool) -> dict[str, float]:
    """The scores by scib-metrics' Benchmarker, with exact neighbours or its own approximate ones."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation
    from scib_metrics.nearest_neighbors import NeighborsResults

    bio = BioConservation(
        isolated_labels=False,
        nmi_ari_cluster_labels_leiden=True,
        nmi_ari_cluster_labels_kmeans=False,
        clisi_knn=False,
    )
    batch = BatchCorrection(ilisi_knn=False, kbet_per_label=False, pcr_comparison=False, bras=False)
    cells = ad.AnnData(np.zeros((len(features), 1), np.float32), obs={"type": types, "batch": batches})
    cells.obsm["X"] = features
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Benchmarker(
            cells, "batch", "type", ["X"], bio, batch, pre_integrated_embedding_obsm_key="X", progress_bar=False
        )
        found.prepare((lambda x, k: NeighborsResults(*nearest_neighbours(x, k))) if exact else None)
        found.benchmark()
        raw = found.get_results(clean_names=False).loc["X"]
    # The Benchmarker has ASW of batches only as BRAS, a later variant, and graph connectivity with directed edges.
    parts = {
        "nmi": "nmi_ari_cluster_labels_leiden_nmi",
        "ari": "nmi_ari_cluster_labels_leiden_ari",
        "asw_type": "silhouette_label",
    }
    return {name: float(raw[column]) for name, column in parts.items()}


def check(features: F32, types: Labels, batches: Labels) -> None:
    import scib_metrics
    import sklearn.metrics

    scores = scib_scores(features, types, batches)
    for name, value in benchmarker(features, types, batches, exact=True).items():
        assert scores[name] == pytest.approx(value, abs=1e-6), name
    assert scores["asw_batch"] == pytest.approx(scib_metrics.silhouette_batch(features, types, batches), abs=1e-6)
    widths = []
    for name in set(types):
        here = types == name
        if 1 < len(set(batches[here])) < here.sum():
            silhouettes = sklearn.metrics.silhouette_samples(features[here], batches[here].astype(str))
            widths.append(1 - np.abs(silhouettes).mean())
    assert scores["asw_batch"] == pytest.approx(np.mean(widths), abs=1e-4)
    graph = kneighbors_graph(features, NEIGHBOURS, include_self=True)
    shares = []
    for name in set(types):
        here = np.flatnonzero(types == name)
        parts = connected_components(graph[here][:, here], directed=True, connection="weak")[1]
        shares.append(np.unique(parts, return_counts=True)[1].max() / len(here))
    assert scores["graph_connectivity"] == pytest.approx(np.mean(shares))
    assert scores["avg_bio"] == pytest.approx((scores["nmi"] + scores["ari"] + scores["asw_type"]) / 3)
    assert scores["avg_batch"] == pytest.approx((scores["asw_batch"] + scores["graph_connectivity"]) / 2)


def test_scores_are_those_of_the_benchmarker() -> None:
    check(*clusters(n_types=5, n_batches=3, cells_each=8, batch_effect=1.0))


@pytest.mark.slow
def test_scores_of_real_cells_are_those_of_the_benchmarker(real_data: Path) -> None:
    cells = ad.read_h5ad(real_data / "scp1884_gut_1020.h5ad")
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=20)
    features = cells.obsm["X_pca"].astype(np.float32)
    types, batches = names_of(cells.obs["Celltype"]), names_of(cells.obs["batch"])
    check(features, types, batches)
    scores = scib_scores(features, types, batches)
    for name, value in benchmarker(features, types, batches, exact=False).items():
        assert scores[name] == pytest.approx(value, abs=0.05), name


def test_an_edge_in_one_direction_connects_cells_of_a_type() -> None:
    """A chain 0 -> 1 -> 2 without a way back; 3 hangs on a cell of the other type alone; 4 and 5 know themselves."""
    found = np.array([[0, 1], [1, 2], [2, 2], [3, 4], [4, 4], [5, 5]], np.int32)
    types = np.array([0, 0, 0, 0, 1, 1])
    assert graph_connectivity(found, types) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert graph_connectivity(found[:3], types[:3]) == 1.0


def test_a_perfect_embedding_scores_high_and_noise_low() -> None:
    features, types, batches = clusters(n_types=4, n_batches=3, cells_each=12, batch_effect=0.0)
    perfect = scib_scores(features, types, batches)
    assert perfect["nmi"] == perfect["ari"] == pytest.approx(1.0)
    assert perfect["graph_connectivity"] == 1.0
    assert perfect["avg_batch"] > 0.9
    noise = scib_scores(np.random.default_rng(0).normal(size=features.shape).astype(np.float32), types, batches)
    assert abs(noise["ari"]) < 0.1
    assert noise["avg_bio"] < perfect["avg_bio"] - 0.5
    separate, *_ = clusters(n_types=4, n_batches=3, cells_each=12, batch_effect=20.0)
    assert scib_scores(separate, types, batches)["avg_batch"] < perfect["avg_batch"] - 0.3


@pytest.mark.parametrize("features", [np.ones((40, 3), np.float32), np.eye(2, dtype=np.float32)[np.arange(40) % 2]])
def test_equal_vectors_are_scored_too(features: F32) -> None:
    """Such vectors may be made elsewhere, and many neighbours are equally far."""
    types, batches = (np.array([f"{i % n}" for i in range(40)], object) for n in (2, 3))
    scores = scib_scores(features, types, batches)
    assert all(np.isfinite(list(scores.values())))


def test_as_many_cells_as_neighbours_are_not_enough_but_one_more_is() -> None:
    features, types, batches = clusters(n_types=2, n_batches=2, cells_each=4, batch_effect=0.0)
    assert len(features) == NEIGHBOURS + 1
    assert scib_scores(features, types, batches)["asw_type"] > 0.8

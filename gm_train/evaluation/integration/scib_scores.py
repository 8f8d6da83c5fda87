"""The scores of scIB for batch integration, by scib-metrics."""

import importlib.util
import os
import warnings

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.labels import Labels
from gm_train.evaluation.own_threads import torch_threads_kept

#: Neighbours of a cell in the graph of scIB, the cell itself among them.
NEIGHBOURS = 15


def has_scib_metrics() -> bool:
    """Whether scib-metrics is installed."""
    return importlib.util.find_spec("scib_metrics") is not None


@torch_threads_kept()
def scib_scores(features: F32, types: Labels, batches: Labels) -> dict[str, float]:
    """Score how well an embedding keeps cell types apart and mixes batches within them.

    Avg_bio = (NMI + ARI + ASW_type) / 3 and Avg_batch = (ASW_batch + graph connectivity) / 2, as in the tables of
    GeneMamba (arXiv 2504.16956), which takes them from scGPT (Cui et al. 2024, 10.1038/s41592-024-02201-0). The parts
    are those of scIB (Luecken et al. 2022, 10.1038/s41592-021-01336-8):

    - NMI, ARI: agreement of types with Leiden clusters of the neighbour graph, at that one of ten resolutions which has
      the best NMI (scIB itself clusters by Louvain);
    - ASW_type: (1 + mean silhouette width of types) / 2;
    - ASW_batch: 1 - |silhouette width of batches among the cells of a type|, averaged over the cells of each type, then
      over types;
    - graph connectivity: the share of a type's cells in the largest part of them that is connected in the graph,
      averaged over types (`graph_connectivity`).

    Distances are Euclidean. Neighbours are exact, where scib-metrics searches them approximately.

    Args:
        features: float32 (n_cells, n_features), finite; more than `NEIGHBOURS` cells.
        types: object (n_cells,), str; at least two different ones.
        batches: object (n_cells,), str; at least one type must have cells in several batches, and several in one.

    Returns:
        `avg_bio`, `avg_batch` and their parts `nmi`, `ari`, `asw_type`, `asw_batch` and `graph_connectivity`: 0 to 1,
        more is better; `ari` of clusters worse than chance is below 0.
    """
    # jax would take most of the memory of a GPU, where the model may be. It also must score alike on any machine.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import scib_metrics

    type_codes, batch_codes = (np.unique(names.astype(str), return_inverse=True)[1] for names in (types, batches))
    found, distances = nearest_neighbours(features, NEIGHBOURS)
    graph = scib_metrics.nearest_neighbors.NeighborsResults(indices=found, distances=distances)
    with warnings.catch_warnings():
        # The warning is about a graph in several parts, which is no fault here.
        warnings.filterwarnings("ignore", message="Graph is not fully connected", category=UserWarning)
        clusters = scib_metrics.nmi_ari_cluster_labels_leiden(graph, type_codes)
    scores = {
        "nmi": clusters["nmi"],
        "ari": clusters["ari"],
        "asw_type": scib_metrics.silhouette_label(features, type_codes),
        "asw_batch": scib_metrics.silhouette_batch(features, type_codes, batch_codes),
        "graph_connectivity": graph_connectivity(found, type_codes),
    }
    averages = {
        "avg_bio": (scores["nmi"] + scores["ari"] + scores["asw_type"]) / 3,
        "avg_batch": (scores["asw_batch"] + scores["graph_connectivity"]) / 2,
    }
    return {name: float(value) for name, value in {**averages, **scores}.items()}


def graph_connectivity(found: npt.NDArray[np.int32], types: npt.NDArray[np.int64]) -> float:
    """Measure how well cells of one type hang together in a graph of neighbours, as scIB does.

    Cells are connected if one is a neighbour of the other. (scib-metrics 0.5 asks for paths in both directions.)

    Args:
        found: int32 (n_cells, n_neighbours), the neighbours of each cell.
        types: int64 (n_cells,).

    Returns:
        The share of a type's cells in the largest connected part of them, averaged over types: above 0, at most 1.
    """
    n_cells, n_neighbours = found.shape
    starts = np.arange(0, found.size + 1, n_neighbours)
    graph = scipy.sparse.csr_matrix((np.ones(found.size, np.int8), found.ravel(), starts), shape=(n_cells, n_cells))
    graph = graph + graph.T
    shares = []
    for number in np.unique(types):
        here = np.flatnonzero(types == number)
        _, parts = connected_components(graph[here][:, here], directed=False)
        shares.append(np.bincount(parts).max() / len(here))
    return float(np.mean(shares))


def nearest_neighbours(features: F32, n_neighbours: int) -> tuple[npt.NDArray[np.int32], F32]:
    """Find the nearest cells of each cell by Euclidean distance, itself included.

    Args:
        features: float32 (n_cells, n_features).
        n_neighbours: at most n_cells.

    Returns:
        int32 and float32 (n_cells, n_neighbours): cell numbers and distances, the nearest first.
    """
    search = NearestNeighbors(n_neighbors=n_neighbours).fit(features)
    distances, found = search.kneighbors(features)
    return found.astype(np.int32), distances.astype(np.float32)

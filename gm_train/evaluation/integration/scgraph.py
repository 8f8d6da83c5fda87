"""scGraph: whether the distances between cell types in an embedding are those that the batches themselves show."""

import warnings

import numpy as np
import numpy.typing as npt
import scipy.sparse
from scipy.spatial.distance import cdist
from scipy.stats import trim_mean

from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.labels import Labels
from gm_train.evaluation.own_threads import torch_threads_kept

#: The settings of the paper: batches and types with fewer cells are left out; highly variable genes and components of
#: a batch; share of cells that is cut off at either end of a component when a centroid is taken.
MIN_BATCH, MIN_TYPE = 100, 10
GENES, COMPONENTS, TRIM = 1_000, 10, 0.05
#: A type is scored if the consensus knows its distance to so many other types: fewer always correlate well.
MIN_OTHERS = 3

F64 = npt.NDArray[np.float64]


def consensus_distances(
    expression: scipy.sparse.csr_matrix, types: Labels, batches: Labels, names: npt.NDArray[np.str_]
) -> F64 | None:
    """Average the distances between the centroids of cell types over batches.

    Each batch with at least `MIN_BATCH` cells has principal components of its own, so batch effects are not in its
    distances. Distances from a type are divided by the largest, averaged over the batches that have both types, and
    divided by the largest again (Wang, Leskovec and Regev 2025, 10.1038/s41587-025-02702-z).

    Args:
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000.
        types, batches: object (n_cells,), str.
        names: of the types that are compared.

    Returns:
        float64 (n_types, n_types), in the order of `names`; a column has the distances from one type, 0 to 1, and NaN
        for types that it meets in no batch. None if no type meets `MIN_OTHERS` others.
    """
    sums, counts = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)))
    for batch in np.unique(batches.astype(str)):
        here = batches == batch
        if here.sum() < MIN_BATCH:
            continue
        distances = type_distances(_components(expression[here]), types[here], names)
        known = np.isfinite(distances)
        sums[known] += distances[known]
        counts[known] += 1
    consensus = _divided_by_largest(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))
    return consensus if scored_types(consensus).any() else None


def type_distances(features: F32, types: Labels, names: npt.NDArray[np.str_]) -> F64:
    """Measure the distances between the centroids of types: trimmed means of each feature.

    Args:
        features: float32 (n_cells, n_features).
        types: object (n_cells,), str.
        names: of the types that are compared.

    Returns:
        float64 (n_types, n_types), each column divided by its largest; NaN for types without cells.
    """
    centroids = np.full((len(names), features.shape[1]), np.nan)
    for number, name in enumerate(names):
        if (here := types == name).any():
            centroids[number] = trim_mean(features[here].astype(np.float64), TRIM, axis=0)
    return _divided_by_largest(cdist(centroids, centroids))


def scgraph(features: F32, types: Labels, names: npt.NDArray[np.str_], consensus: F64) -> float:
    """Correlate the distances between types in an embedding with the consensus of the batches.

    For each type, the Pearson correlation of its distances to the others with their consensus, weighted by the inverse
    of the consensus, so that near types count most; then the mean over types ("Corr-Weighted" of the paper). A type
    whose distances are all the same in the embedding counts as 0.

    Args:
        features: float32 (n_cells, n_features).
        types: object (n_cells,), str; all `names` must be among them.
        names: of the types that are compared.
        consensus: of `consensus_distances`.

    Returns:
        -1 to 1; 1 if the embedding has the distances of the batches, up to scale.
    """
    distances = type_distances(features, types, names)
    scores = []
    for number in np.flatnonzero(scored_types(consensus)):
        others = _others(consensus, int(number))
        scores.append(_weighted_correlation(distances[others, number], consensus[others, number]))
    return float(np.mean(scores))


@torch_threads_kept()
def _components(expression: scipy.sparse.csr_matrix) -> F32:
    """The first principal components of one batch on its own variable genes: float32 (n_cells, at most 10)."""
    import anndata as ad
    import scanpy as sc

    cells = ad.AnnData(expression)
    with warnings.catch_warnings():
        # Dispersions of genes that no cell of the batch has.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        if cells.n_vars > GENES:
            sc.pp.highly_variable_genes(cells, n_top_genes=GENES)
        n_components = min(COMPONENTS, min(cells.shape) - 1)
        sc.pp.pca(cells, n_comps=n_components, mask_var="highly_variable" if cells.n_vars > GENES else None)
    return np.asarray(cells.obsm["X_pca"], dtype=np.float32)


def _divided_by_largest(distances: F64) -> F64:
    """Divide each column by its largest value; a column without any stays."""
    largest = np.where(np.isfinite(distances), distances, 0.0).max(0, initial=0.0)
    return distances / np.where(largest > 0, largest, 1.0)


def _others(consensus: F64, number: int) -> npt.NDArray[np.int64]:
    """The types whose distance to one type is known and not zero."""
    column = consensus[:, number]
    return np.flatnonzero(np.isfinite(column) & (column > 0))


def scored_types(consensus: F64) -> npt.NDArray[np.bool_]:
    """Tell which types are scored, bool (n_types,): those whose distance to `MIN_OTHERS` others is known.

    Args:
        consensus: of `consensus_distances`.
    """
    return np.array([len(_others(consensus, number)) >= MIN_OTHERS for number in range(len(consensus))], np.bool_)


def _weighted_correlation(distances: F64, consensus: F64) -> float:
    weights = 1 / consensus
    x, y = (values - np.average(values, weights=weights) for values in (distances, consensus))
    spread = np.sqrt(np.sum(weights * x**2) * np.sum(weights * y**2))
    return float(np.sum(weights * x * y) / spread) if spread > 0 else 0.0

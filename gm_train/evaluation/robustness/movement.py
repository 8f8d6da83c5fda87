"""How far embeddings move when the counts of their cells are disturbed."""

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

F64 = npt.NDArray[np.float64]


def movement(undisturbed: F64, disturbed: F64) -> float:
    """The mean cosine distance of cells to themselves, disturbed, in units of that to the nearest other cell.

    sum_i d(x_i, x'_i) / sum_i min_{j != i} d(x_i, x_j), where x_i is the vector of cell i, x'_i its vector after the
    disturbance, and d is one minus the cosine. 0: nothing moved. 1: a cell is as far from itself as the nearest other
    cell was. The unit makes embeddings comparable whose vectors all lie close together. It must not be so small that
    one cell without genes outweighs all others: take what all vectors have in common off first.

    Args:
        undisturbed: float64 (n_cells, n_features), at least two cells.
        disturbed: float64 (n_cells, n_features), the same cells; a vector of zeros is at distance 1.
    """
    before, after = normalize(undisturbed), normalize(disturbed)
    moved = (1 - (before * after).sum(1)).sum()
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(before).kneighbors()[0].sum()
    # Vectors that are all equal are no unit: then rounding of float32 is.
    return float(moved / max(nearest, len(undisturbed) * np.finfo(np.float32).eps))

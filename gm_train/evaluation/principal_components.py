"""Principal components of expression, which frozen cell embeddings are compared with."""

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.decomposition import PCA

N_COMPONENTS = 50

F32 = npt.NDArray[np.float32]


def fit_components(expression: scipy.sparse.csr_matrix) -> PCA:
    """Fit the first principal components, at most 50, of expression, float32 (n_cells, n_genes)."""
    components = min(N_COMPONENTS, expression.shape[0] - 1, expression.shape[1] - 1)
    return PCA(components, svd_solver="arpack", random_state=0).fit(expression)


def project(components: PCA, expression: scipy.sparse.csr_matrix) -> F32:
    """Project expression, float32 (n_cells, n_genes), on fitted components: float32 (n_cells, at most 50)."""
    return np.asarray(components.transform(expression), dtype=np.float32)


def principal_components(expression: scipy.sparse.csr_matrix, train: npt.NDArray[np.bool_]) -> F32:
    """Project all cells on the first principal components of the training cells: float32 (n_cells, at most 50).

    Args:
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000.
        train: bool (n_cells,), the cells that the components are fitted on.
    """
    return project(fit_components(expression[train]), expression)

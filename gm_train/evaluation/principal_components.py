"""Principal components of expression, which frozen cell embeddings are compared with."""

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.decomposition import PCA

N_COMPONENTS = 50

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def fit_components(expression: scipy.sparse.csr_matrix) -> PCA:
    """Fit the first principal components, at most 50, of expression, float32 (n_cells, n_genes)."""
    components = min(N_COMPONENTS, expression.shape[0] - 1, expression.shape[1] - 1)
    return PCA(components, svd_solver="arpack", random_state=0).fit(expression)


def loadings(expression: scipy.sparse.csr_matrix, components: F32) -> F64:
    """The loadings of principal components, from the components of the cells that they were fitted on.

    V = X' Z / |z|^2, with X the expression less its mean and z a column of Z. So nothing has to be fitted again.

    Args:
        expression: float32 (n_cells, n_genes), of the cells that the components were fitted on.
        components: float32 (n_cells, n_components), of these cells.

    Returns:
        float64 (n_genes, n_components); a component that is the same for all cells has loadings of zero.
    """
    z = components.astype(np.float64)
    mean = np.asarray(expression.mean(0, dtype=np.float64))[0]
    products, lengths = expression.T @ z - np.outer(mean, z.sum(0)), (z**2).sum(0)
    known = lengths > np.finfo(np.float32).eps ** 2 * lengths.max(initial=0)
    found: F64 = np.divide(products, lengths, out=np.zeros_like(products), where=known)
    return found


def principal_components(expression: scipy.sparse.csr_matrix, train: npt.NDArray[np.bool_]) -> F32:
    """Project all cells on the first principal components of the training cells: float32 (n_cells, at most 50).

    Args:
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000.
        train: bool (n_cells,), the cells that the components are fitted on.
    """
    return np.asarray(fit_components(expression[train]).transform(expression), dtype=np.float32)

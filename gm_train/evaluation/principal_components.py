"""Principal components of expression, which frozen cell embeddings are compared with."""

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.decomposition import PCA

N_COMPONENTS = 50

F32 = npt.NDArray[np.float32]


def principal_components(expression: scipy.sparse.csr_matrix, train: npt.NDArray[np.bool_]) -> F32:
    """Project all cells on the first principal components of the training cells: float32 (n_cells, at most 50).

    Args:
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000.
        train: bool (n_cells,), the cells that the components are fitted on.
    """
    components = min(N_COMPONENTS, int(train.sum()) - 1, expression.shape[1] - 1)
    pca = PCA(components, svd_solver="arpack", random_state=0).fit(expression[train])
    return np.asarray(pca.transform(expression), dtype=np.float32)

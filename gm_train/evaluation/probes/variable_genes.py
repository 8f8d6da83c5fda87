"""The expression of the most variable genes, which frozen cell embeddings are compared with."""

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils.sparsefuncs import mean_variance_axis

N_GENES = 500

F32 = npt.NDArray[np.float32]


def variable_genes(expression: scipy.sparse.csr_matrix, train: npt.NDArray[np.bool_]) -> F32:
    """Take the genes whose expression varies most among the training cells: float32 (n_cells, at most 500).

    Args:
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000.
        train: bool (n_cells,), the cells that the genes are chosen on.
    """
    _, variances = mean_variance_axis(expression[train], axis=0)
    chosen = np.sort(np.argsort(-variances, kind="stable")[:N_GENES])
    return np.asarray(expression[:, chosen].toarray(), dtype=np.float32)

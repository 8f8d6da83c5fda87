"""Frozen cell embeddings, and the principal components they are compared with."""

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from sklearn.decomposition import PCA

from gm_train.evaluation.ragged import Ragged, padded_batches
from gm_train.model.genemamba import GeneMamba, cell_embeddings

N_COMPONENTS = 50

F32 = npt.NDArray[np.float32]


@torch.inference_mode()
def embed_cells(model: GeneMamba, cells: Ragged) -> F32:
    """Embed cells: the mean of the final-norm states over a cell's tokens, none masked; float32 (n_cells, d_model).

    The embedding of a cell without tokens is zero.
    """
    device = next(model.parameters()).device
    embeddings: F32 | None = None
    for numbers, input_ids, segment in padded_batches(cells, device):
        means = cell_embeddings(model(input_ids, segment), segment).float().cpu().numpy()
        if embeddings is None:
            embeddings = np.zeros((cells.n_cells, means.shape[1]), dtype=np.float32)
        embeddings[numbers] = means
    if embeddings is None:
        raise ValueError("no cell with a token to embed")
    return embeddings


def principal_components(expression: scipy.sparse.csr_matrix, train: npt.NDArray[np.bool_]) -> F32:
    """Project all cells on the first principal components of the training cells: float32 (n_cells, at most 50).

    Args:
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000.
        train: bool (n_cells,), the cells that the components are fitted on.
    """
    components = min(N_COMPONENTS, int(train.sum()) - 1, expression.shape[1] - 1)
    pca = PCA(components, svd_solver="arpack", random_state=0).fit(expression[train])
    return np.asarray(pca.transform(expression), dtype=np.float32)

"""What gene pairs are scored by: vectors of genes, co-expression, and how much genes are expressed."""

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from sklearn.metrics import roc_auc_score

from data_shards.workers import interrupts
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.loss import computing_in

#: Pairs whose co-expression is computed at once.
_GROUP = 1_000

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def static_vectors(model: GeneMamba) -> F32:
    """The input embedding of each token: float32 (vocabulary_size, d_model)."""
    return np.asarray(model.embedding.weight.detach().float().cpu().numpy())


@torch.inference_mode()
def contextual_vectors(model: GeneMamba, cells: Ragged, precision: str = "fp32") -> F32:
    """The mean of each token's final state over the cells that have it: float32 (vocabulary_size, d_model).

    Args:
        model: in evaluation mode, on the device to use.
        cells: none of their tokens is masked.
        precision: "fp32", or "bf16" for autocast.

    Returns:
        Zeros for tokens that no cell has.
    """
    weight = model.embedding.weight
    sums = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for _, input_ids, segment in padded_batches(cells, weight.device):
        with computing_in(precision, weight.device):
            states = model(input_ids, segment)
        real = segment > 0
        sums.index_add_(0, input_ids[real], states[real].float())
        interrupts.check()
    counts = np.bincount(cells.tokens.astype(np.int64), minlength=len(weight))
    return np.asarray(sums.cpu().numpy() / np.maximum(counts, 1)[:, None].astype(np.float32))


def cosines(vectors: F32, genes: I64, pairs: I64) -> F64:
    """Cosines of the vectors of pairs, less the mean vector of all genes: float64 (n_pairs,).

    The mean is taken off because all states of a model point much the same way.

    Args:
        vectors: float32 (vocabulary_size, n_features).
        genes: int64 (n_genes,), the tokens whose mean vector is taken off.
        pairs: int64 (n_pairs, 2), tokens.
    """
    centred = vectors.astype(np.float64) - vectors[genes].astype(np.float64).mean(0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.maximum(lengths, np.finfo(np.float32).tiny)
    return np.asarray((unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1))


def correlations(expression: scipy.sparse.csr_matrix, pairs: I64) -> F64:
    """Pearson correlations of the expression of pairs over cells: float64 (n_pairs,); 0 for a constant gene.

    Args:
        expression: float32 (n_cells, n_genes).
        pairs: int64 (n_pairs, 2), columns of `expression`.
    """
    n_cells = expression.shape[0]
    x = expression.tocsc().astype(np.float64)
    mean = np.asarray(x.mean(0))[0]
    variance = np.maximum(np.asarray(x.multiply(x).mean(0))[0] - mean**2, 0.0)
    found = np.zeros(len(pairs))
    for at in range(0, len(pairs), _GROUP):
        a, b = pairs[at : at + _GROUP].T
        products = np.asarray(x[:, a].multiply(x[:, b]).sum(0))[0] / n_cells
        scale = np.sqrt(variance[a] * variance[b])
        found[at : at + _GROUP] = np.where(scale > 1e-12, (products - mean[a] * mean[b]) / np.maximum(scale, 1e-12), 0)
    return found


def auroc(scores: F64) -> float:
    """AUROC in %: how often a related pair has a higher score than a random one; a tie counts as half.

    Args:
        scores: float64 (2 n,), of n related pairs and then of n random ones.
    """
    return 100 * float(roc_auc_score(np.arange(len(scores)) < len(scores) // 2, scores))

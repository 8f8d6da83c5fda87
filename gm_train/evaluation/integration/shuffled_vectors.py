"""Controls of batch integration: an embedding's own vectors, handed out at random."""

import numpy as np

from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.labels import Labels


def shuffle_within(features: F32, groups: Labels, seed: int) -> F32:
    """Permute the vectors among the cells of each group, as Open Problems' controls do.

    Args:
        features: float32 (n_cells, n_features).
        groups: object (n_cells,), str: the types of the cells, or their batches.
        seed: of the permutation.
    """
    generator = np.random.default_rng(seed)
    shuffled = np.empty_like(features)
    for name in np.unique(groups.astype(str)):
        here = np.flatnonzero(groups == name)
        shuffled[here] = features[generator.permutation(here)]
    return shuffled

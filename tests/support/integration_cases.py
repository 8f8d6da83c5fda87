"""Embeddings with known types and batches for the tests of batch integration."""

import numpy as np
import pandas as pd

from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.labels import Labels


def clusters(
    n_types: int, n_batches: int, cells_each: int, batch_effect: float, seed: int = 0
) -> tuple[F32, Labels, Labels]:
    """Draw cells around a centre for each type, each batch moved by its own vector.

    Args:
        n_types: number of types.
        n_batches: number of batches; all have cells of all types.
        cells_each: cells of each type in each batch.
        batch_effect: length of the vectors, where cells spread by 1 and types are about 10 apart.
        seed: of the cells.

    Returns:
        Features, float32 (n_cells, 6); types and batches, object (n_cells,).
    """
    rng = np.random.default_rng(seed)
    centres = 10 * rng.normal(size=(n_types, 6)) / np.sqrt(2)
    effects = rng.normal(size=(n_batches, 6))
    effects *= batch_effect / np.linalg.norm(effects, axis=1, keepdims=True)
    types, batches = (
        grid.ravel() for grid in np.meshgrid(range(n_types), np.repeat(range(n_batches), cells_each), indexing="ij")
    )
    features = centres[types] + effects[batches] + rng.normal(size=(len(types), 6))
    return (
        features.astype(np.float32),
        np.array([f"type {number}" for number in types], object),
        np.array([f"batch {number}" for number in batches], object),
    )


def names_of(column: pd.Series) -> Labels:
    """The values of a column of obs as object (n_cells,), str."""
    return np.asarray(column.astype(str), dtype=object)

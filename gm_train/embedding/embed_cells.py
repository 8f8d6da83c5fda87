"""Embed cells that are tokens already: one vector for each, the same in any batch."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from data_shards.workers import interrupts
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.model.genemamba import GeneMamba, cell_embeddings
from gm_train.objective.loss import computing_in

F32 = npt.NDArray[np.float32]


def _ignore(n_cells: int) -> None:
    """Report no progress."""


@torch.inference_mode()
def embed_cells(
    model: GeneMamba,
    cells: Ragged,
    pool: str = "mean",
    precision: str = "fp32",
    advance: Callable[[int], object] = _ignore,
) -> F32:
    """Pool the final-norm states over each cell's tokens, none of which is masked.

    A cell is computed alone in its row, in a batch whose shape follows from the cell's length. So its vector does not
    depend on the other cells.

    Args:
        model: in evaluation mode, on the device to use.
        cells: the cells.
        pool: one of `gm_train.model.pooling.POOLS`.
        precision: "fp32", or "bf16" for autocast; pooling is always float32.
        advance: called after each batch with its number of cells.

    Returns:
        float32 (n_cells, d_model); NaN for cells without tokens.
    """
    device = next(model.parameters()).device
    embeddings = np.full((cells.n_cells, model.embedding.embedding_dim), np.nan, dtype=np.float32)
    for numbers, input_ids, segment in padded_batches(cells, device):
        with computing_in(precision, device):
            states = model(input_ids, segment)
        embeddings[numbers] = cell_embeddings(states, segment, pool).float().cpu().numpy()
        advance(len(numbers))
        interrupts.check()
    return embeddings

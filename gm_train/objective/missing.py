"""Missing-gene modelling: a part of a cell's genes is shown, and the part's pooled state names the cell's other genes.

The genes of a cell are divided into two parts, each in the cell's order. The model sees each part as a cell of its own,
and each predicts the other, so that no position of a row is wasted. No `<mask>` tells where a gene was taken out: the
neighbours in the order do not give it away, and the question is what cell this is.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.compiled import compiled
from data_shards.hashing import U64, fold, mix64_scalar
from data_shards.rows.pool import Rows
from gm_train.model.genemamba import GeneMamba, pool_cells
from gm_train.objective.batches import MicroBatch
from gm_train.objective.cell_keys import cell_keys, uniform_scalar
from gm_train.objective.recipe import Objective, Prediction, Recipe

I64 = npt.NDArray[np.int64]

_PURPOSE_SHARE, _PURPOSE_PART = 31, 32


@compiled("Tuple((uint16[:], int64[:]))(uint16[:], int64[:], uint64[:], boolean[:], uint64[:], float64, float64)")
def _divide(tokens, lengths, keys, damaged, purposes, smallest, largest):  # type: ignore[no-untyped-def]
    divided = tokens.copy()
    length_of_part = np.zeros(2 * len(lengths), np.int64)
    start = 0
    for cell in range(len(lengths)):
        n = lengths[cell]
        length_of_part[2 * cell] = n
        if not damaged[cell]:
            share = smallest + (largest - smallest) * uniform_scalar(mix64_scalar(keys[cell] ^ purposes[0]))
            key = mix64_scalar(keys[cell] ^ purposes[1])
            is_first = np.empty(n, np.bool_)
            for i in range(n):
                is_first[i] = uniform_scalar(mix64_scalar(key ^ np.uint64(i))) < share
            n_first = is_first.sum()
            a, b = start, start + n_first
            for i in range(n):
                if is_first[i]:
                    divided[a] = tokens[start + i]
                    a += 1
                else:
                    divided[b] = tokens[start + i]
                    b += 1
            length_of_part[2 * cell] = n_first
            length_of_part[2 * cell + 1] = n - n_first
        start += n
    return divided, length_of_part


def divide_cells(rows: Rows, recipe: Recipe) -> Rows:
    """Divide each cell into two parts, laid out one after the other as cells of their own.

    The share of the genes in the first part is drawn evenly from `objective.shown`, and each gene is in it with that
    probability. Parts without a gene are left out; damaged cells stay whole.

    Args:
        rows: whole cells, packed.
        recipe: its seed and `objective.shown` are used.
    """
    smallest, largest = recipe.objective.shown
    keys = cell_keys(recipe.seed, rows.places, rows.cells)
    purposes = np.array([fold(_PURPOSE_SHARE), fold(_PURPOSE_PART)], np.uint64)
    tokens, lengths = _divide(rows.tokens, rows.lengths, keys, rows.damaged, purposes, smallest, largest)
    exists = lengths > 0
    of_part = np.repeat(np.arange(len(rows.lengths)), 2)[exists]
    row_of_cell = np.repeat(np.arange(len(rows)), rows.cells_of_row)
    return Rows(
        tokens,
        lengths[exists],
        rows.places[of_part],
        rows.cells[of_part],
        rows.damaged[of_part],
        np.bincount(row_of_cell[of_part], minlength=len(rows)),
    )


def predict_missing_genes(tokens: I64, lengths: I64, keys: U64, recipe: Recipe) -> Prediction:
    """Let each part of a cell predict the other part; a part that is a whole cell predicts nothing.

    A target is the distance from the part's first position to the other part's first position. In a row, the other part
    is the next one if that is positive, else the one before.

    Args:
        tokens: int64 (n_tokens,), parts one after another.
        lengths: int64 (n_parts,), tokens of each part.
        keys: uint64 (n_parts,), from `cell_keys`: the two parts of a cell have the same.
        recipe: unused, since nothing more is drawn.
    """
    first = np.flatnonzero(keys[1:] == keys[:-1])
    starts = np.cumsum(lengths) - lengths
    states = np.stack([starts[first], starts[first + 1]], axis=1).reshape(-1)
    targets = np.stack([lengths[first], -lengths[first]], axis=1).reshape(-1)
    return Prediction(tokens, np.zeros(len(tokens), dtype=bool), states, targets)


def missing_loss(model: GeneMamba, states: Tensor, batch: MicroBatch) -> Tensor:
    """Sum over the parts: the cross-entropy of the other part's genes, averaged over these genes, in nats.

    The probabilities are over all genes that the part does not show. They come from the mean of the part's states,
    which is the embedding of a cell, through the output layer.

    Args:
        model: its output layer predicts.
        states: (rows, length, d_model), of the micro-batch.
        batch: the micro-batch.

    Returns:
        A scalar.
    """
    pooled = pool_cells(states, batch.segment, batch.most_cells)
    n_rows, n = pooled.shape[:2]
    length = batch.segment.shape[1]
    # Each number of a row has a slot, whether a part has it or not: so shapes depend on `most_cells` alone.
    slot = batch.target_at // length * n + batch.segment.flatten()[batch.target_at] - 1
    other = torch.arange(n_rows * n, device=slot.device).index_put((slot,), slot + batch.targets.sign())
    predicts = torch.zeros(n_rows * n, dtype=torch.bool, device=slot.device).index_fill(0, slot, True)
    shown = _shown_genes(batch, n, model.embedding.num_embeddings)
    return model.missing_loss(pooled.flatten(0, 1), shown, shown[other] & predicts[:, None])


def _shown_genes(batch: MicroBatch, n: int, vocabulary_size: int) -> Tensor:
    """Which tokens the cell, or part, of each slot shows: bool (rows * n, vocabulary_size)."""
    n_rows = len(batch.segment)
    row = torch.arange(n_rows, device=batch.segment.device)[:, None]
    # The unused tail goes to a slot of its own.
    slot = torch.where(batch.segment > 0, row * n + batch.segment - 1, n_rows * n)
    shown = torch.zeros(n_rows * n + 1, vocabulary_size, dtype=torch.bool, device=slot.device)
    shown[slot.flatten(), batch.input_ids.flatten()] = True
    return shown[:-1]


MISSING = Objective(predict_missing_genes, missing_loss, divide_cells)

"""Masked-gene modelling: draw which tokens are hidden, and what they show instead.

Draws are a counter hash of (seed, position of the block in the order of blocks, cell in the block, token in the cell):
they are the same for any number of ranks, loader workers and restarts.
"""

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled
from data_shards.hashing import U64, fold, mix64_scalar
from data_shards.tokens.vocabulary import FIRST_GENE, MASK
from gm_train.objective.cell_keys import uniform_scalar
from gm_train.objective.recipe import Objective, Prediction, Recipe
from gm_train.objective.token_loss import token_loss

_PURPOSE_SELECT, _PURPOSE_REPLACE, _PURPOSE_GENE = 1, 2, 3


@compiled("Tuple((int64[:], boolean[:]))(int64[:], int64[:], uint64[:], uint64[:], int64, float64, float64)")
def _mask(tokens, lengths, keys, purposes, n_genes, mask_rate, random_rate):  # type: ignore[no-untyped-def]
    visible = tokens.copy()
    chosen = np.zeros(len(tokens), np.bool_)
    at = 0
    for cell in range(len(lengths)):
        select = mix64_scalar(keys[cell] ^ purposes[0])
        replace = mix64_scalar(keys[cell] ^ purposes[1])
        draw = mix64_scalar(keys[cell] ^ purposes[2])
        for i in range(lengths[cell]):
            index = np.uint64(i)
            if uniform_scalar(mix64_scalar(select ^ index)) < mask_rate:
                chosen[at] = True
                visible[at] = MASK
                if uniform_scalar(mix64_scalar(replace ^ index)) < random_rate:
                    gene = FIRST_GENE + np.int64(uniform_scalar(mix64_scalar(draw ^ index)) * n_genes)
                    if gene != tokens[at]:
                        visible[at] = gene
            at += 1
    return visible, chosen


def mask_tokens(
    tokens: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    keys: U64,
    vocabulary_size: int,
    mask_rate: float,
    random_rate: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Hide a share of the tokens of each cell.

    Every token is chosen with probability `mask_rate`, independently. A chosen token shows `<mask>` or, with
    probability `random_rate`, a gene drawn evenly from the vocabulary. If that is the token's own gene, it shows
    `<mask>`: a hidden token never shows itself.

    Args:
        tokens: int64 (n_tokens,), cells one after another.
        lengths: int64 (n_cells,), tokens of each cell.
        keys: uint64 (n_cells,), from `cell_keys`.
        vocabulary_size: number of tokens, special ones included.
        mask_rate: probability that a token is chosen.
        random_rate: probability that a chosen token shows a random gene.

    Returns:
        The visible tokens, int64 (n_tokens,), and which are chosen, bool (n_tokens,).
    """
    purposes = np.array([fold(p) for p in (_PURPOSE_SELECT, _PURPOSE_REPLACE, _PURPOSE_GENE)], np.uint64)
    n_genes = vocabulary_size - FIRST_GENE
    visible, chosen = _mask(tokens, lengths, keys, purposes, n_genes, mask_rate, random_rate)
    return visible, chosen


def predict_masked_genes(
    tokens: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], keys: U64, recipe: Recipe
) -> Prediction:
    """Hide a share of each cell's genes; each is predicted from the state at its own position.

    Args:
        tokens: int64 (n_tokens,), cells one after another.
        lengths: int64 (n_cells,), tokens of each cell.
        keys: uint64 (n_cells,), from `cell_keys`.
        recipe: its `mask_rate`, `random_rate` and vocabulary size are used.
    """
    objective = recipe.objective
    visible, hidden = mask_tokens(
        tokens, lengths, keys, recipe.vocabulary_size, objective.mask_rate, objective.random_rate
    )
    at = np.flatnonzero(hidden)
    return Prediction(visible, hidden, at, tokens[at])


MASKED = Objective(predict_masked_genes, token_loss)

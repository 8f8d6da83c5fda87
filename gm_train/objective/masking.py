"""Masked-gene modelling: which tokens are hidden, and what stands in their place.

Drawn by a counter hash of (seed, place of the block in the data order, cell in the block, token in the cell): the
same for any number of ranks, loader workers and restarts.
"""

import numpy as np
import numpy.typing as npt

from data_shards.hashing import U64, fold, mix64, uniform
from data_shards.vocabulary import FIRST_GENE, MASK

_PURPOSE_SELECT, _PURPOSE_REPLACE, _PURPOSE_GENE = 1, 2, 3


def cell_keys(seed: int, places: npt.NDArray[np.int64], cells: npt.NDArray[np.int64]) -> U64:
    """The key of each drawn cell: uint64 (n_cells,).

    Args:
        seed: the run's seed.
        places: int64 (n_cells,), place of the cell's block in the order of the data.
        cells: int64 (n_cells,), the cell's number within its block.
    """
    return mix64(mix64(places.astype(np.uint64) ^ np.uint64(fold(seed))) ^ cells.astype(np.uint64))


def token_hashes(keys: U64, lengths: npt.NDArray[np.int64], purpose: int) -> U64:
    """One hash for every token of every cell: uint64 (sum of lengths,)."""
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    index = np.arange(len(starts)) - starts
    return mix64(mix64(np.repeat(keys, lengths) ^ np.uint64(fold(purpose))) ^ index.astype(np.uint64))


def mask_tokens(
    tokens: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    keys: U64,
    vocabulary_size: int,
    mask_rate: float,
    random_rate: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Hide a share of the tokens of each cell.

    Every token is chosen with probability `mask_rate`, on its own. A chosen token shows `<mask>`, or, with
    probability `random_rate`, a gene drawn evenly from the vocabulary. A draw that hits the token's own gene
    shows `<mask>`: a hidden token never shows itself.

    Args:
        tokens: int64 (n_tokens,), cells one after another.
        lengths: int64 (n_cells,), tokens of each cell.
        keys: uint64 (n_cells,), from `cell_keys`.
        vocabulary_size: number of tokens, specials included.

    Returns:
        The visible tokens, int64 (n_tokens,), and which are chosen, bool (n_tokens,).
    """
    chosen = uniform(token_hashes(keys, lengths, _PURPOSE_SELECT)) < mask_rate
    visible = np.where(chosen, MASK, tokens)
    shows_gene = chosen & (uniform(token_hashes(keys, lengths, _PURPOSE_REPLACE)) < random_rate)
    n_genes = vocabulary_size - FIRST_GENE
    gene = FIRST_GENE + (uniform(token_hashes(keys, lengths, _PURPOSE_GENE)) * n_genes).astype(np.int64)
    shows_gene &= gene != tokens
    return np.where(shows_gene, gene, visible), chosen

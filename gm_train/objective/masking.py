"""Masked-gene modelling: which tokens are hidden, and what stands in their place.

Drawn by a counter hash of (seed, place of the block in the data order, cell in the block, token in the cell): the
same for any number of ranks, loader workers and restarts.
"""

import numba
import numpy as np
import numpy.typing as npt

from data_shards.hashing import U64, fold, mix64
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


@numba.njit("uint64(uint64)", cache=True, inline="always")
def _mix64(x):  # type: ignore[no-untyped-def]
    """`hashing.mix64` of one uint64: numba's cache would not see changes in another file."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit("float64(uint64)", cache=True, inline="always")
def _uniform(hashed):  # type: ignore[no-untyped-def]
    """`hashing.uniform` of one uint64."""
    return np.float64(hashed >> np.uint64(11)) * 2.0**-53


@numba.njit("uint64[:](uint64[:], int64[:], uint64)", cache=True, nogil=True)
def _token_hashes(keys, lengths, purpose):  # type: ignore[no-untyped-def]
    hashes = np.empty(lengths.sum(), np.uint64)
    at = 0
    for cell in range(len(lengths)):
        key = _mix64(keys[cell] ^ purpose)
        for index in range(lengths[cell]):
            hashes[at] = _mix64(key ^ np.uint64(index))
            at += 1
    return hashes


def token_hashes(keys: U64, lengths: npt.NDArray[np.int64], purpose: int) -> U64:
    """One hash for every token of every cell: uint64 (sum of lengths,)."""
    return np.asarray(_token_hashes(keys, lengths, np.uint64(fold(purpose))))


@numba.njit(
    "Tuple((int64[:], boolean[:]))(int64[:], int64[:], uint64[:], uint64[:], int64, float64, float64)",
    cache=True,
    nogil=True,
)
def _mask(tokens, lengths, keys, purposes, n_genes, mask_rate, random_rate):  # type: ignore[no-untyped-def]
    visible = tokens.copy()
    chosen = np.zeros(len(tokens), np.bool_)
    at = 0
    for cell in range(len(lengths)):
        select = _mix64(keys[cell] ^ purposes[0])
        replace = _mix64(keys[cell] ^ purposes[1])
        draw = _mix64(keys[cell] ^ purposes[2])
        for i in range(lengths[cell]):
            index = np.uint64(i)
            if _uniform(_mix64(select ^ index)) < mask_rate:
                chosen[at] = True
                visible[at] = MASK
                if _uniform(_mix64(replace ^ index)) < random_rate:
                    gene = FIRST_GENE + np.int64(_uniform(_mix64(draw ^ index)) * n_genes)
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
    purposes = np.array([fold(p) for p in (_PURPOSE_SELECT, _PURPOSE_REPLACE, _PURPOSE_GENE)], np.uint64)
    n_genes = vocabulary_size - FIRST_GENE
    visible, chosen = _mask(tokens, lengths, keys, purposes, n_genes, mask_rate, random_rate)
    return visible, chosen

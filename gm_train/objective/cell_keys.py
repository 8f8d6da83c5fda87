"""Keys and hashes that masks and gene pairs are drawn by: functions of the seed and of where a cell stands in the data.

They are the same for any number of ranks, loader workers and restarts.
"""

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled
from data_shards.hashing import U64, fold, mix64, mix64_scalar


def cell_keys(seed: int, places: npt.NDArray[np.int64], cells: npt.NDArray[np.int64]) -> U64:
    """The key of each drawn cell: uint64 (n_cells,).

    Args:
        seed: the run's seed.
        places: int64 (n_cells,), place of the cell's block in the order of the data.
        cells: int64 (n_cells,), the cell's number within its block.
    """
    return mix64(mix64(places.astype(np.uint64) ^ np.uint64(fold(seed))) ^ cells.astype(np.uint64))


@compiled("float64(uint64)", inline="always")
def uniform_scalar(hashed):  # type: ignore[no-untyped-def]
    """`hashing.uniform` of one uint64."""
    return np.float64(hashed >> np.uint64(11)) * 2.0**-53


@compiled("uint64[:](uint64[:], int64[:], uint64)")
def _token_hashes(keys, lengths, purpose):  # type: ignore[no-untyped-def]
    hashes = np.empty(lengths.sum(), np.uint64)
    at = 0
    for cell in range(len(lengths)):
        key = mix64_scalar(keys[cell] ^ purpose)
        for index in range(lengths[cell]):
            hashes[at] = mix64_scalar(key ^ np.uint64(index))
            at += 1
    return hashes


def token_hashes(keys: U64, lengths: npt.NDArray[np.int64], purpose: int) -> U64:
    """One hash for every token of every cell: uint64 (sum of lengths,)."""
    return np.asarray(_token_hashes(keys, lengths, np.uint64(fold(purpose))))

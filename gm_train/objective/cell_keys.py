"""Keys and hashes that decide masks and gene pairs: functions of the seed and of a cell's position in the data.

They are the same for any number of ranks, loader workers and restarts.
"""

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled
from data_shards.hashing import U64, fold, mix64, mix64_scalar


def cell_keys(seed: int, places: npt.NDArray[np.int64], cells: npt.NDArray[np.int64]) -> U64:
    """Compute the key of each cell: uint64 (n_cells,).

    Args:
        seed: the run's seed.
        places: int64 (n_cells,), position of the cell's block in the order of blocks.
        cells: int64 (n_cells,), the cell's number within its block.
    """
    return mix64(mix64(places.astype(np.uint64) ^ np.uint64(fold(seed))) ^ cells.astype(np.uint64))


@compiled("float64(uint64)", inline="always")
def uniform_scalar(hashed):  # type: ignore[no-untyped-def]
    """Compute `hashing.uniform` of one uint64: float64 in [0, 1)."""
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
    """Compute a hash for every token of every cell: uint64 (sum of lengths,).

    Args:
        keys: uint64 (n_cells,), from `cell_keys`.
        lengths: int64 (n_cells,), tokens of each cell.
        purpose: number of the purpose that the hashes serve; each has hashes of its own.
    """
    return np.asarray(_token_hashes(keys, lengths, np.uint64(fold(purpose))))

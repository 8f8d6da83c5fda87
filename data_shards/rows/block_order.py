"""The order in which the blocks of a store are read, computed in constant memory.

Pass p over the store permutes its C blocks by a keyed bijection. Place q of the endless order holds block
perm_(q div C)(q mod C). A data set of weight w counts w times in C, one of weight 0 not at all. Nothing is stored or
shuffled: each place is computed on its own, so a run starts at place 10^9 as fast as at place 0.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled
from data_shards.hashing import fold, mix64_scalar

_ROUNDS = 6
I64 = npt.NDArray[np.int64]


@compiled("Tuple((uint64[:], int64))(uint64[:], uint64, uint64[:], uint64)")
def _permute(indices, size, keys, half_bits):  # type: ignore[no-untyped-def]
    """Images of `indices`, each under its own key, and the total number of runs of the network."""
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    images = np.empty(len(indices), np.uint64)
    turns = 0
    for i in range(len(indices)):
        index, key = indices[i], keys[i]
        while True:
            turns += 1
            left, right = index >> half_bits, index & half_mask
            for number in range(_ROUNDS):
                mixed = mix64_scalar(key ^ mix64_scalar(right << np.uint64(8) | np.uint64(number)))
                left, right = right, left ^ (mixed & half_mask)
            index = left << half_bits | right
            if index < size:
                break
        images[i] = index
    return images, turns


def permute(indices: I64, size: int, keys: npt.NDArray[np.uint64]) -> I64:
    """Images of `indices` under keyed bijections of 0 … size-1.

    A balanced Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022) on the smallest even number of bits that
    holds `size`, walked along its cycle until it lands below `size` (Black and Rogaway 2002,
    doi:10.1007/3-540-45760-7_9): at most four turns on average.

    Args:
        indices: int64 (n,), each in 0 … size-1.
        size: size of the permuted range.
        keys: uint64 (n,), key of the bijection for each index.

    Returns:
        int64 (n,).
    """
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise ValueError(f"an index is not in 0 … {size - 1}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    images, _ = _permute(indices.astype(np.uint64), np.uint64(size), keys, np.uint64(half_bits))
    return np.asarray(images.astype(np.int64))


class BlockOrder:
    """The endless order of a store's blocks.

    Args:
        seed: the run's seed.
        store_hash: the manifest's hash (hex); each store has another order.
        n_blocks: number of blocks of each data set, in the order of the manifest.
        weights: how often the blocks of each data set occur in a pass; None: once.

    Attributes:
        size: C, the number of places in a pass.
    """

    def __init__(
        self, seed: int, store_hash: str, n_blocks: Sequence[int], weights: Sequence[int] | None = None
    ) -> None:
        self._n_blocks = np.array(n_blocks, np.int64)
        self._first_block = np.cumsum(self._n_blocks) - self._n_blocks
        # Where each data set begins among the C; one of weight 0 takes no room there.
        repeated = self._n_blocks * np.array([1] * len(n_blocks) if weights is None else weights, np.int64)
        self._first = np.cumsum(repeated) - repeated
        self.size = int(repeated.sum())
        if self.size < 1:
            raise ValueError("a store without blocks has no order")
        self._key = fold(seed, int(store_hash[:16], 16))

    def blocks(self, places: I64) -> I64:
        """The number of the block at each place (int64 (n,), from 0), counted across all data sets: int64 (n,)."""
        passes, indices = np.divmod(places, self.size)
        keys = {number: fold(self._key, number) for number in set(passes.tolist())}
        images = permute(indices, self.size, np.array([keys[number] for number in passes.tolist()], np.uint64))
        which = np.searchsorted(self._first, images, side="right") - 1
        return np.asarray(self._first_block[which] + (images - self._first[which]) % self._n_blocks[which])

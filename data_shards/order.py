"""In which order the blocks of a store are read, in constant memory.

Pass p over the store permutes its C blocks by a keyed bijection; place q of the endless order holds block
perm_(q div C)(q mod C). Nothing is stored and nothing is shuffled: any place is computed on its own, so that a run
starts at place 10^9 as fast as at place 0.
"""

from data_shards.hashing import fold, mix64_int

_ROUNDS = 6


def permute(index: int, size: int, key: int) -> int:
    """Image of `index` under the keyed bijection of 0 … size-1.

    A balanced Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022) on the smallest even number of bits that
    holds `size`, walked along its cycle until it lands below `size` (Black and Rogaway 2002,
    doi:10.1007/3-540-45760-7_9): at most four turns on average.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} is not in 0 … {size - 1}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & half_mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (mix64_int(key ^ mix64_int(right << 8 | number)) & half_mask)
        index = left << half_bits | right
        if index < size:
            return index


class BlockOrder:
    """The endless order of a store's blocks.

    Args:
        seed: the run's seed.
        store_hash: the manifest's hash (hex): another store is another order.
        n_blocks: C, the blocks of the store.
    """

    def __init__(self, seed: int, store_hash: str, n_blocks: int) -> None:
        if n_blocks < 1:
            raise ValueError("a store without blocks has no order")
        self.n_blocks = n_blocks
        self._key = fold(seed, int(store_hash[:16], 16))

    def block(self, place: int) -> int:
        """The block at a place (0, 1, 2, …)."""
        number, index = divmod(place, self.n_blocks)
        return permute(index, self.n_blocks, fold(self._key, number))

"""Counter hashes: the only source of randomness in the data path.

Every random choice (ties, dither, block order, masks, pathway genes) is a pure function of 64-bit keys. It is therefore
the same on every machine, for any number of ranks and loader workers, and after any restart.
The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195).
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled

_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_MASK64 = (1 << 64) - 1

U64 = npt.NDArray[np.uint64]


def mix64(x: U64) -> U64:
    """Mix every uint64 of an array into a well-spread uint64 (same shape)."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


@compiled("uint64(uint64)", inline="always")
def mix64_scalar(x):  # type: ignore[no-untyped-def]
    """`mix64` of one uint64, for compiled code."""
    x = x + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_M1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_M2)
    return x ^ (x >> np.uint64(31))


def mix64_int(x: int) -> int:
    """`mix64` of one Python int (taken modulo 2^64)."""
    x = (x + _GOLDEN) & _MASK64
    x = ((x ^ (x >> 30)) * _M1) & _MASK64
    x = ((x ^ (x >> 27)) * _M2) & _MASK64
    return x ^ (x >> 31)


def fold(*keys: int) -> int:
    """Combine several integers into one 64-bit key; their order matters."""
    state = 0
    for key in keys:
        state = mix64_int(state ^ mix64_int(key))
    return state


def hash_string(text: str) -> int:
    """Return a 64-bit hash (BLAKE2b) of a string, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_strings(texts: Iterable[str]) -> U64:
    """`hash_string` of each string: uint64 (n,)."""
    return np.fromiter((hash_string(text) for text in texts), dtype=np.uint64)


def uniform(hashes: U64) -> npt.NDArray[np.float64]:
    """Convert hashes to float64 in [0, 1), using their upper 53 bits (same shape)."""
    return np.asarray((hashes >> np.uint64(11)) * 2.0**-53, dtype=np.float64)

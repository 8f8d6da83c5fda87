"""Products of float32 matrices in compiled loops, by SciPy's BLAS library.

They may be parts of larger arrays, and a product may be added to what is there. numba compiles NumPy's `dot` only for
arrays of their own.
"""

from typing import Any

import llvmlite.binding
import numpy as np
from numba import config, types
from numba.extending import get_cython_function_address
from scipy.linalg import cython_blas

from data_shards.compiled import compiled

#: Whether products can be called: not from Python (NUMBA_DISABLE_JIT), nor in a build of SciPy with 64-bit sizes.
CAN_MULTIPLY = not config.DISABLE_JIT and "int *" in str(cython_blas.__pyx_capi__["sgemm"])  # type: ignore[attr-defined]
# A symbol, unlike a pointer, may stand in code that is cached on disk.
llvmlite.binding.add_symbol("gm_train_sgemm", get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))
_sgemm = types.ExternalFunction("gm_train_sgemm", types.void(*[types.intp] * 13))


@compiled()
def arguments() -> Any:
    """Scratch memory for the arguments of products, which each thread needs for itself."""
    return np.empty(6, np.int32), np.ones(2, np.float32), np.array([ord("N"), ord("T")], np.uint8)


@compiled()
def multiply(scratch: Any, m: int, n: int, k: int, a: Any, b: Any, out: Any, add: bool) -> None:
    """out = a b, or out += a b if `add`: (m, n) from (m, k) and (k, n).

    A matrix is a tuple: contiguous float32 memory, its first element there, and the elements from one row to the next.
    """
    _multiply(scratch, m, n, k, a, 0, b, 0, out, add)


@compiled()
def multiply_transposed_a(scratch: Any, m: int, n: int, k: int, a: Any, b: Any, out: Any, add: bool) -> None:
    """The same with the transposed a, which lies there as (k, m)."""
    _multiply(scratch, m, n, k, a, 1, b, 0, out, add)


@compiled()
def multiply_transposed_b(scratch: Any, m: int, n: int, k: int, a: Any, b: Any, out: Any, add: bool) -> None:
    """The same with the transposed b, which lies there as (n, k)."""
    _multiply(scratch, m, n, k, a, 0, b, 1, out, add)


@compiled()
def _multiply(
    scratch: Any, m: int, n: int, k: int, a: Any, a_transposed: int, b: Any, b_transposed: int, out: Any, add: bool
) -> None:
    sizes, factors, letters = scratch
    # BLAS reads columns where NumPy writes rows: to it, each matrix is its transposed one, and the order is b a.
    sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5] = n, m, k, b[2], a[2], out[2]
    factors[1] = np.float32(1) if add else np.float32(0)
    size, factor, letter = sizes.ctypes.data, factors.ctypes.data, letters.ctypes.data
    _sgemm(
        letter + b_transposed, letter + a_transposed, size, size + 4, size + 8, factor, _address(b), size + 12,
        _address(a), size + 16, factor + 4, _address(out), size + 20,
    )  # fmt: skip


@compiled(inline="always")
def _address(matrix: Any) -> Any:
    return matrix[0].ctypes.data + 4 * matrix[1]

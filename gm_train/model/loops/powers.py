"""Powers of 2 and what is made of them, in float32, for compiled loops."""

from typing import Any

import numpy as np

from data_shards.compiled import compiled

_LOG2_E = np.float32(1.4426950408889634)
_LEAST, _MOST = np.float32(-126), np.float32(126)
_ZERO, _ONE, _BIAS, _MANTISSA = np.float32(0), np.float32(1), np.int32(127), np.int32(23)
# 2^r for |r| <= 1/2: Taylor's coefficients ln(2)^k / k!, to 1e-7.
_C1, _C2, _C3 = np.float32(0.6931471806), np.float32(0.2402265070), np.float32(0.05550410866)
_C4, _C5, _C6 = np.float32(0.009618129108), np.float32(0.001333355815), np.float32(0.0001540353039)

#: Options of loops with powers. LLVM cannot turn a call of exp2f into vectors. Without checks for division by zero, and
#: with products and sums joined, it does so with the whole loop.
VECTORS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
#: Options of loops that add up a vector, which needs sums in another order.
SUMS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "reassoc"}}


@compiled(inline="always", **VECTORS)
def power_of_2(exponent: Any) -> Any:
    """2^exponent, float32, relative error below 3e-7; exponents beyond ± 126 count as ± 126."""
    exponent = min(max(exponent, _LEAST), _MOST)
    whole = np.rint(exponent)
    r = exponent - whole
    power = _ONE + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
    return power * np.int32((np.int32(whole) + _BIAS) << _MANTISSA).view(np.float32)


@compiled(inline="always", **VECTORS)
def sigmoid(value: Any) -> Any:
    """1 / (1 + e^-value), float32."""
    return _ONE / (_ONE + power_of_2(-value * _LOG2_E))


@compiled(**SUMS)
def dot(one: Any, other: Any) -> Any:
    """Sum of the products of two vectors."""
    total = _ZERO
    for i in range(len(one)):
        total += one[i] * other[i]
    return total

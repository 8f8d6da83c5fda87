"""The convolution of `conv.py` with its SiLU as compiled loops for a CPU, for both directions at once.

The forward loop reads x once and writes the result of each direction once. The backward loop computes the values before
the SiLU again, a few tokens at a time, so that nothing but x is kept and nothing between the passes leaves the cache.
Everything is float32. The operations are registered with PyTorch, so that a compiled graph does not break at them.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.compiled import compiled
from gm_train.model.loops.powers import VECTORS, sigmoid
from gm_train.model.loops.tensor_memory import copy_of, memory_of
from gm_train.model.loops.threads import in_threads

#: Tokens of a part of the backward pass: parts are fixed, so that sums do not depend on the number of threads.
TOKENS = 64

_ONE = np.float32(1)


@compiled(**VECTORS)
def _filter(x: Any, start: int, step: int, reach: int, weight: Any, bias: Any, out: Any) -> None:
    """out = bias + sum over k up to `reach` of weight_k x_(k-th row before, or after, that at `start`)."""
    width = len(bias)
    row = x[start : start + width]
    first = weight[0]
    for c in range(width):
        out[c] = bias[c] + first[c] * row[c]
    for k in range(1, reach + 1):
        row = x[start + k * step : start + k * step + width]
        tap = weight[k]
        for c in range(width):
            out[c] += tap[c] * row[c]


@compiled(**VECTORS)
def _forward(
    x: Any, strides: Any, reach: Any, weight: Any, bias: Any, causal: Any, mirrored: Any, first: int, last: int
) -> None:
    length = reach.shape[2]
    for i in range(first, last):
        b, t = i // length, i % length
        start = b * strides[0] + t * strides[1]
        for direction in range(2 if len(mirrored) else 1):
            out = mirrored[i] if direction else causal[i]
            step = strides[1] if direction else -strides[1]
            _filter(x, start, step, reach[direction, b, t], weight, bias, out)
            for c in range(len(bias)):
                out[c] *= sigmoid(out[c])


@compiled(**VECTORS)
def _backward(
    x: Any, strides: Any, reach: Any, weight: Any, bias: Any, d_causal: Any, d_mirrored: Any, d_x: Any, parts: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    length, (taps, width) = reach.shape[2], weight.shape
    halo = taps - 1
    each = -(-length // TOKENS)
    before = np.empty((2, TOKENS + 2 * halo, width), np.float32)  # gradients before the SiLU, by direction
    joined = np.empty(width, np.float32)
    for part in range(first, last):
        b, begin = part // each, part % each * TOKENS
        end = min(begin + TOKENS, length)
        for direction in range(2 if len(d_mirrored) else 1):
            step = strides[1] if direction else -strides[1]
            for t in range(max(0, begin - halo * direction), min(length, end + halo * (1 - direction))):
                out = before[direction, t - begin + halo]
                grad = d_mirrored[b * length + t] if direction else d_causal[b * length + t]
                _filter(x, b * strides[0] + t * strides[1], step, reach[direction, b, t], weight, bias, out)
                for c in range(width):
                    s = sigmoid(out[c])
                    out[c] = grad[c] * s * (_ONE + out[c] * (_ONE - s))
        sums = parts[part]
        sums[:] = 0
        for t in range(begin, end):
            at = t - begin + halo
            start = b * strides[0] + t * strides[1]
            row, out = x[start : start + width], d_x[b * length + t]
            out[:] = 0
            for k in range(taps):
                one, other = before[0, min(at + k, TOKENS + 2 * halo - 1)], before[1, max(at - k, 0)]
                reads = len(d_mirrored) and k <= reach[0, b, t]  # the mirrored output k tokens before reads this token
                if k <= reach[1, b, t] and reads:
                    for c in range(width):
                        joined[c] = one[c] + other[c]
                elif k <= reach[1, b, t]:
                    joined[:] = one
                elif reads:
                    joined[:] = other
                else:
                    break
                tap, of_tap = weight[k], sums[k]
                for c in range(width):
                    out[c] += tap[c] * joined[c]
                    of_tap[c] += row[c] * joined[c]
                if k == 0:
                    of_bias = sums[taps]
                    for c in range(width):
                        of_bias[c] += joined[c]


@torch.library.custom_op("gm_train::conv_silu_loops", mutates_args=(), device_types="cpu")
def conv_silu_loops(x: Tensor, reach: Tensor, weight: Tensor, bias: Tensor, bidirectional: bool) -> list[Tensor]:
    """Convolve packed rows and apply SiLU.

    Args:
        x: float32 (batch, length, channels).
        reach: int8 (2, batch, length), how many tokens of the same cell stand before and after each position, at most
            taps - 1.
        weight: float32 (taps, channels), the tap of the token itself first.
        bias: float32 (channels,).
        bidirectional: whether to compute the mirrored form as well.

    Returns:
        The causal result and, if bidirectional, the mirrored one, contiguous.
    """
    flat, strides = memory_of(x)
    outs = [torch.empty(x.shape) for _ in range(1 + bidirectional)]
    rows = [_rows(out) for out in outs]
    given = flat, strides, reach.numpy(), copy_of(weight), copy_of(bias), rows[0], _second(rows)
    in_threads(lambda first, last: _forward(*given, first, last), len(rows[0]))
    return outs


@torch.library.custom_op("gm_train::conv_silu_loops_backward", mutates_args=(), device_types="cpu")
def conv_silu_loops_backward(
    grads: list[Tensor], x: Tensor, reach: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `conv_silu_loops`.

    Args:
        grads: of the outputs.
        x, reach, weight, bias: as in `conv_silu_loops`.

    Returns:
        The gradient by x, contiguous, and those by taps and bias, in parts that the caller adds up: float32
        (parts, taps + 1, channels).
    """
    flat, strides = memory_of(x)
    rows = [_rows(grad.contiguous()) for grad in grads]
    d_x = torch.empty(x.shape)
    parts = torch.empty(_n_parts(x), len(weight) + 1, x.shape[2])
    given = (
        flat, strides, reach.numpy(), copy_of(weight), copy_of(bias), rows[0], _second(rows), _rows(d_x),
        parts.numpy(),
    )  # fmt: skip
    in_threads(lambda first, last: _backward(*given, first, last), len(parts))
    return d_x, parts


def _rows(x: Tensor) -> NDArray[Any]:
    return x.detach().flatten(0, 1).numpy()


def _second(rows: list[NDArray[Any]]) -> NDArray[Any]:
    return rows[1] if len(rows) == 2 else rows[0][:0]


def _n_parts(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[1] // TOKENS)


@conv_silu_loops.register_fake
def _(x: Tensor, reach: Tensor, weight: Tensor, bias: Tensor, bidirectional: bool) -> list[Tensor]:
    return [x.new_empty(x.shape) for _ in range(1 + bidirectional)]


@conv_silu_loops_backward.register_fake
def _(grads: list[Tensor], x: Tensor, reach: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(_n_parts(x), len(weight) + 1, x.shape[2])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward_of(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, reach, weight, bias = ctx.saved_tensors
    d_x, parts = conv_silu_loops_backward(grads, x, reach, weight, bias)
    sums = parts.sum(0)
    return d_x, None, sums[:-1], sums[-1], None


conv_silu_loops.register_autograd(_backward_of, setup_context=_keep)

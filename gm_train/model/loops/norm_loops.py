"""The gated norm of `norm.py` as compiled loops for a CPU, for both directions at once.

Each array is read or written once, forward and backward; z, every y and their scales are kept. Everything is float32.
The operations are registered with PyTorch, so that a compiled graph does not break at them.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.compiled import compiled
from gm_train.model.loops.powers import VECTORS, dot, sigmoid
from gm_train.model.loops.tensor_memory import copy_of
from gm_train.model.loops.threads import in_threads

#: Tokens of a part of the backward pass: parts are fixed, so that sums do not depend on the number of threads.
TOKENS = 64

_ONE, _ZERO = np.float32(1), np.float32(0)


@compiled(**VECTORS)
def _forward(
    z: Any, step: int, y: Any, second: Any, weight: Any, eps: Any, out_y: Any, out_second: Any, scales: Any, first: int,
    last: int,
) -> None:  # fmt: skip
    width = len(weight)
    gate, gated = np.empty(width, np.float32), np.empty(width, np.float32)
    for i in range(first, last):
        before = z[i * step : i * step + width]
        for c in range(width):
            gate[c] = before[c] * sigmoid(before[c])
        for direction in range(len(scales)):
            value = second[i] if direction else y[i]
            for c in range(width):
                gated[c] = value[c] * gate[c]
            scale = _ONE / np.sqrt(dot(gated, gated) / np.float32(width) + eps)
            scales[direction, i] = scale
            out = out_second[i] if direction else out_y[i]
            for c in range(width):
                out[c] = gated[c] * scale * weight[c]


@compiled(**VECTORS)
def _backward(
    grad: Any, other: Any, z: Any, step: int, y: Any, second: Any, weight: Any, scales: Any, d_z: Any, d_y: Any,
    d_second: Any, parts: Any, first: int, last: int,
) -> None:  # fmt: skip
    n, width = d_z.shape
    gate, slope = np.empty(width, np.float32), np.empty(width, np.float32)
    weighted, gated, d_gate = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    for part in range(first, last):
        sums = parts[part]
        sums[:] = _ZERO
        for i in range(part * TOKENS, min(n, (part + 1) * TOKENS)):
            before = z[i * step : i * step + width]
            for c in range(width):
                s = sigmoid(before[c])
                gate[c] = before[c] * s
                slope[c] = s * (_ONE + before[c] * (_ONE - s))
                d_gate[c] = _ZERO
            for direction in range(len(scales)):
                value, given = (second[i], other[i]) if direction else (y[i], grad[i])
                scale, out = scales[direction, i], d_second[i] if direction else d_y[i]
                for c in range(width):
                    weighted[c] = given[c] * weight[c]
                    gated[c] = value[c] * gate[c] * scale
                    sums[c] += given[c] * gated[c]
                mean = dot(weighted, gated) / np.float32(width)
                for c in range(width):
                    d_gated = (weighted[c] - gated[c] * mean) * scale
                    out[c] = d_gated * gate[c]
                    d_gate[c] += d_gated * value[c]
            of_z = d_z[i]
            for c in range(width):
                of_z[c] = d_gate[c] * slope[c]


@torch.library.custom_op("gm_train::gated_norm_loops", mutates_args=(), device_types="cpu")
def gated_norm_loops(z: Tensor, ys: list[Tensor], weight: Tensor, eps: float) -> list[Tensor]:
    """RMSNorm of y * SiLU(z) for one or two y.

    Args:
        z: float32 (..., width).
        ys: one or two of the same shape, float32.
        weight: float32 (width,).
        eps: added to the mean square.

    Returns:
        The result for each y, and 1 / sqrt(mean square + eps) of all their rows, (number of y, rows).
    """
    flat, step = _flat(z)
    rows, outs = [_rows(y) for y in ys], [torch.empty(y.shape) for y in ys]
    scales = torch.empty(len(ys), len(rows[0]))
    given = (flat, step, rows[0], rows[-1], copy_of(weight), np.float32(eps), _rows(outs[0]), _rows(outs[-1]))
    in_threads(lambda first, last: _forward(*given, scales.numpy(), first, last), len(rows[0]))
    return [*outs, scales]


@torch.library.custom_op("gm_train::gated_norm_loops_backward", mutates_args=(), device_types="cpu")
def gated_norm_loops_backward(
    grads: list[Tensor], z: Tensor, ys: list[Tensor], weight: Tensor, scales: Tensor
) -> list[Tensor]:
    """Gradients of `gated_norm_loops`.

    Args:
        grads: by the result of each y.
        z, ys, weight: as in `gated_norm_loops`.
        scales: its last output.

    Returns:
        The gradients by z and by each y, and that by the weight in parts that the caller adds up: (parts, width).
    """
    flat, step = _flat(z)
    rows, of_rows = [_rows(y) for y in ys], [_rows(grad) for grad in grads]
    d_z, *d_ys = (torch.empty(value.shape) for value in (z, *ys))
    parts = torch.empty(_n_parts(z), len(weight))
    given = (
        of_rows[0], of_rows[-1], flat, step, rows[0], rows[-1], copy_of(weight), scales.numpy(), _rows(d_z),
        _rows(d_ys[0]), _rows(d_ys[-1]), parts.numpy(),
    )  # fmt: skip
    in_threads(lambda first, last: _backward(*given, first, last), len(parts))
    return [d_z, *d_ys, parts]


def _flat(z: Tensor) -> tuple[NDArray[Any], int]:
    """The memory from z's first element to its last, and the step between rows: z may be a slice of wider rows."""
    rows = z.detach().flatten(0, -2)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    n, width = rows.shape
    step = rows.stride(0)
    return rows.as_strided(((n - 1) * step + width if n else 0,), (1,)).numpy(), step


def _rows(y: Tensor) -> NDArray[Any]:
    return y.detach().flatten(0, -2).contiguous().numpy()


def _n_parts(z: Tensor) -> int:
    return -(-(z.numel() // z.shape[-1]) // TOKENS)


@gated_norm_loops.register_fake
def _(z: Tensor, ys: list[Tensor], weight: Tensor, eps: float) -> list[Tensor]:
    return [*(y.new_empty(y.shape) for y in ys), z.new_empty(len(ys), z.numel() // z.shape[-1])]


@gated_norm_loops_backward.register_fake
def _(grads: list[Tensor], z: Tensor, ys: list[Tensor], weight: Tensor, scales: Tensor) -> list[Tensor]:
    return [*(value.new_empty(value.shape) for value in (z, *ys)), z.new_empty(_n_parts(z), len(weight))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    z, ys, weight, _ = inputs
    ctx.save_for_backward(z, weight, output[-1], *ys)


def _backward_of(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    z, weight, scales, *ys = ctx.saved_tensors
    d_z, *d_ys, parts = gated_norm_loops_backward(grads[:-1], z, ys, weight, scales)
    return d_z, d_ys, parts.sum(0), None


gated_norm_loops.register_autograd(_backward_of, setup_context=_keep)

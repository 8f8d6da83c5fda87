"""The gated norm of `norm.py` as two Triton kernels, one for each pass, over both directions of a layer at once.

Each kernel reads z, and the y of every direction, once and writes each result once. SiLU(z), squares, sums and products
are float32, whatever the type of the arrays. Nothing but the inputs is kept for the backward pass.

The operations are registered with PyTorch, so that a compiled graph does not break at them. This file is imported only
where a kernel runs, since Triton is not installed everywhere.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 1024  # of the backward kernel; each adds up the gradient of the weight over its own rows
_LARGEST = 16_384  # channels that one program holds


def takes(z: Tensor) -> bool:
    """Whether the kernels can run on arrays of the type and width of z."""
    return z.dtype in (torch.float32, torch.bfloat16, torch.float16) and 0 < z.shape[-1] <= _LARGEST


@triton.jit
def _silu(z):  # type: ignore[no-untyped-def]
    return z * tl.sigmoid(z)


@triton.jit
def _load(start, row, stride, columns, inside):  # type: ignore[no-untyped-def]
    return tl.load(start + row * stride + columns, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(start, row, stride, columns, inside, value):  # type: ignore[no-untyped-def]
    tl.store(start + row * stride + columns, value.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _normed(y, gate, width, eps):  # type: ignore[no-untyped-def]
    gated = y * gate
    scale = 1.0 / tl.sqrt(tl.sum(gated * gated, axis=0) / width + eps)
    return gated * scale, scale


@triton.jit
def _gradient(grad, y, gate, weight, width, eps):  # type: ignore[no-untyped-def]
    """Gradients by y and by the gate, and one row's part of the gradient by the weight."""
    normed, scale = _normed(y, gate, width, eps)
    weighted = grad * weight
    mean = tl.sum(weighted * normed, axis=0) / width
    d_gated = (weighted - normed * mean) * scale
    return d_gated * gate, d_gated * y, grad * normed


@triton.jit  # type: ignore[untyped-decorator]
def _gated_norm_forward_kernel(  # type: ignore[no-untyped-def]
    z, y0, y1, weight, out0, out1, z_stride, y0_stride, y1_stride, width, eps, TWO: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    gate = _silu(_load(z, row, z_stride, columns, inside))
    scaled_by = _load(weight, 0, 0, columns, inside)
    normed, _ = _normed(_load(y0, row, y0_stride, columns, inside), gate, width, eps)
    _store(out0, row, width, columns, inside, normed * scaled_by)
    if TWO:
        normed, _ = _normed(_load(y1, row, y1_stride, columns, inside), gate, width, eps)
        _store(out1, row, width, columns, inside, normed * scaled_by)


@triton.jit  # type: ignore[untyped-decorator]
def _gated_norm_backward_kernel(  # type: ignore[no-untyped-def]
    grad0, grad1, z, y0, y1, weight, dz, dy0, dy1, d_weight,
    grad0_stride, grad1_stride, z_stride, y0_stride, y1_stride, rows, rows_each, width, eps,
    TWO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    channel = columns < width
    scaled_by = _load(weight, 0, 0, columns, channel)
    summed = tl.zeros((BLOCK,), dtype=tl.float32)
    for i in range(0, rows_each):
        row = program * rows_each + i
        inside = channel & (row < rows)
        entering = _load(z, row, z_stride, columns, inside)
        gate = _silu(entering)
        grad = _load(grad0, row, grad0_stride, columns, inside)
        y = _load(y0, row, y0_stride, columns, inside)
        d_y, d_gate, part = _gradient(grad, y, gate, scaled_by, width, eps)
        _store(dy0, row, width, columns, inside, d_y)
        summed += part
        if TWO:
            grad = _load(grad1, row, grad1_stride, columns, inside)
            y = _load(y1, row, y1_stride, columns, inside)
            d_y, d_gate_1, part = _gradient(grad, y, gate, scaled_by, width, eps)
            _store(dy1, row, width, columns, inside, d_y)
            summed += part
            d_gate += d_gate_1
        sigmoid = tl.sigmoid(entering)
        _store(dz, row, width, columns, inside, d_gate * sigmoid * (1.0 + entering * (1.0 - sigmoid)))
    _store(d_weight, program, width, columns, channel, summed)


def _rows(value: Tensor) -> Tensor:
    """The same values as (rows, width), without a copy if the channels are side by side."""
    flat = value.reshape(-1, value.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _options(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


@torch.library.custom_op("gm_train::gated_norm", mutates_args=())
def gated_norm(z: Tensor, ys: list[Tensor], weight: Tensor, eps: float) -> list[Tensor]:
    """RMSNorm of y * SiLU(z) for one or two y.

    Args:
        z: (..., width), float32, bfloat16 or float16.
        ys: one or two of (..., width).
        weight: (width,).
        eps: added to the mean square.

    Returns:
        For each y, a contiguous array of its shape and type.
    """
    outs = [torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in ys]
    rows = [_rows(value) for value in (z, ys[0], ys[-1])]
    width = z.shape[-1]
    if len(rows[0]):
        _gated_norm_forward_kernel[(len(rows[0]),)](
            *rows, weight, outs[0], outs[-1], *(value.stride(0) for value in rows), width, eps,
            TWO=len(ys) == 2, **_options(width),
        )  # fmt: skip
    return outs


@torch.library.custom_op("gm_train::gated_norm_backward", mutates_args=())
def gated_norm_backward(grads: list[Tensor], z: Tensor, ys: list[Tensor], weight: Tensor, eps: float) -> list[Tensor]:
    """Gradients of `gated_norm`.

    Args:
        grads: of the outputs.
        z: as in `gated_norm`.
        ys: as in `gated_norm`.
        weight: as in `gated_norm`.
        eps: as in `gated_norm`.

    Returns:
        The gradients by z and by each y, contiguous in their types, and that by the weight in parts that the caller
        adds up: float32 (parts, width).
    """
    d_z, *d_ys = (torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in (z, *ys))
    rows = [_rows(value) for value in (grads[0], grads[-1], z, ys[0], ys[-1])]
    n, width = rows[0].shape
    each = max(1, triton.cdiv(n, _PROGRAMS))
    parts = torch.empty(_parts(n), width, dtype=torch.float32, device=z.device)
    if n:
        _gated_norm_backward_kernel[(len(parts),)](
            *rows, weight, d_z, d_ys[0], d_ys[-1], parts, *(value.stride(0) for value in rows), n, each, width, eps,
            TWO=len(ys) == 2, **_options(width),
        )  # fmt: skip
    return [d_z, *d_ys, parts]


def _parts(rows: int) -> int:
    each = max(1, -(-rows // _PROGRAMS))
    return -(-rows // each)


@gated_norm.register_fake
def _(z: Tensor, ys: list[Tensor], weight: Tensor, eps: float) -> list[Tensor]:
    return [torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in ys]


@gated_norm_backward.register_fake
def _(grads: list[Tensor], z: Tensor, ys: list[Tensor], weight: Tensor, eps: float) -> list[Tensor]:
    made = [torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in (z, *ys)]
    width = z.shape[-1]
    return [*made, torch.empty(_parts(z.numel() // width), width, dtype=torch.float32, device=z.device)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    z, ys, weight, ctx.eps = inputs
    ctx.save_for_backward(z, weight, *ys)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    z, weight, *ys = ctx.saved_tensors
    d_z, *d_ys, parts = gated_norm_backward(grads, z, ys, weight, ctx.eps)
    return d_z, d_ys, parts.sum(0).to(weight.dtype), None


gated_norm.register_autograd(_backward, setup_context=_keep)

"""The convolution of `conv.py` with its SiLU as Triton kernels, for both directions at once.

The forward kernel reads x once and writes the result of each direction once; that of the mirrored direction in reverse
order, as mamba_ssm's scan reads it. The backward pass has two kernels: one computes the gradients before the SiLU and
those of the taps, the other one that of x. Sums are float32.

The operations are registered with PyTorch, so that a compiled graph does not break at them. This file is imported only
where a kernel runs, since Triton is not installed everywhere.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Tokens and channels of a tile, the work of one program, and its warps: with four, registers do not suffice for the
#: gradient of the taps (compiled for sm_90).
TOKENS, CHANNELS, WARPS = 32, 64, 8


@triton.jit
def _load(x, batch, t, stride_batch, stride_token, channels, inside):  # type: ignore[no-untyped-def]
    at = x + batch * stride_batch + t[:, None] * stride_token + channels[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _cell(cells, batch, t, length, of_row):  # type: ignore[no-untyped-def]
    """The number of the cell at each position, or -1 outside of the row."""
    return tl.load(cells + batch * length + t, mask=of_row & (t >= 0) & (t < length), other=-1)


@triton.jit  # type: ignore[untyped-decorator]
def _tap(weight, channels, k, of_layer, TAPS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(weight + channels * TAPS + (TAPS - 1 - k), mask=of_layer, other=0.0).to(tl.float32)


@triton.jit
def _shifted(x, cells, batch, t, own, stride_batch, stride_token, length, channels, of_layer):  # type: ignore[no-untyped-def]
    """x at t, as float32; zero where that is not in the cell `own`, and for an `own` of -1."""
    same = (_cell(cells, batch, t, length, own >= 0) == own) & (own >= 0)
    return _load(x, batch, t, stride_batch, stride_token, channels, same[:, None] & of_layer[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _filtered(  # type: ignore[no-untyped-def]
    x, cells, weight, bias, batch, t, own, stride_batch, stride_token, length, channels, of_layer,
    SIGN: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The convolution before its SiLU: of x_(t-k) if SIGN is 1, of x_(t+k) if it is -1."""
    total = tl.load(bias + channels, mask=of_layer, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(TAPS):
        value = _shifted(x, cells, batch, t - SIGN * k, own, stride_batch, stride_token, length, channels, of_layer)
        total = total + value * _tap(weight, channels, k, of_layer, TAPS)[None, :]
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _before_silu(  # type: ignore[no-untyped-def]
    grad, x, cells, weight, bias, d_pre, batch, row, t, at, own, inside, stride_batch, stride_token, length, width,
    channels, of_layer, SIGN: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """The gradient before the SiLU of one direction, which is also stored; `at` is where its output was written."""
    y = _filtered(
        x, cells, weight, bias, batch, t, own, stride_batch, stride_token, length, channels, of_layer, SIGN, TAPS
    )
    sigmoid = tl.sigmoid(y)
    d_out = _load(grad, row, at, length * width, width, channels, inside)
    d_y = d_out * sigmoid * (1.0 + y * (1.0 - sigmoid))
    start = d_pre + (row * length + t[:, None]) * width + channels[None, :]
    tl.store(start, d_y.to(d_pre.dtype.element_ty), mask=inside)
    return d_y


@triton.jit  # type: ignore[untyped-decorator]
def _conv_forward_kernel(  # type: ignore[no-untyped-def]
    x, cells, weight, bias, out, stride_batch, stride_token, length, width, rows,
    TWO: tl.constexpr, TAPS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2).to(tl.int64)
    of_layer = channels < width
    own = _cell(cells, batch, t, length, t < length)
    inside = (t < length)[:, None] & of_layer[None, :]
    for direction in tl.static_range(2 if TWO else 1):
        y = _filtered(
            x, cells, weight, bias, batch, t, own, stride_batch, stride_token, length, channels, of_layer,
            1 - 2 * direction, TAPS,
        )  # fmt: skip
        at = t if direction == 0 else length - 1 - t
        start = out + ((direction * rows + batch) * length + at[:, None]) * width + channels[None, :]
        tl.store(start, (y * tl.sigmoid(y)).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _conv_backward_taps_kernel(  # type: ignore[no-untyped-def]
    grad, x, cells, weight, bias, d_pre, d_taps, stride_batch, stride_token, length, width, rows,
    TWO: tl.constexpr, TAPS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2).to(tl.int64)
    part = batch * tl.num_programs(0) + tl.program_id(0)
    of_layer = channels < width
    own = _cell(cells, batch, t, length, t < length)
    inside = (t < length)[:, None] & of_layer[None, :]
    causal = _before_silu(
        grad, x, cells, weight, bias, d_pre, batch, batch, t, t, own, inside, stride_batch, stride_token, length, width,
        channels, of_layer, 1, TAPS,
    )  # fmt: skip
    both = causal
    if TWO:
        mirrored = _before_silu(
            grad, x, cells, weight, bias, d_pre, batch, rows + batch, t, length - 1 - t, own, inside, stride_batch,
            stride_token, length, width, channels, of_layer, -1, TAPS,
        )  # fmt: skip
        both += mirrored
    # Row k is the gradient of tap k; the last row is that of the bias.
    sums = d_taps + part * (TAPS + 1) * width + channels
    tl.store(sums + TAPS * width, tl.sum(both, axis=0), mask=of_layer)
    for k in tl.static_range(TAPS):
        value = _shifted(x, cells, batch, t - k, own, stride_batch, stride_token, length, channels, of_layer)
        total = causal * value
        if TWO:
            value = _shifted(x, cells, batch, t + k, own, stride_batch, stride_token, length, channels, of_layer)
            total += mirrored * value
        tl.store(sums + k * width, tl.sum(total, axis=0), mask=of_layer)


@triton.jit  # type: ignore[untyped-decorator]
def _conv_backward_x_kernel(  # type: ignore[no-untyped-def]
    d_pre, cells, weight, d_x, length, width, rows,
    TWO: tl.constexpr, TAPS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2).to(tl.int64)
    of_layer = channels < width
    own = _cell(cells, batch, t, length, t < length)
    total = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
    # The gradient of each direction is the other one's filter.
    for direction in tl.static_range(2 if TWO else 1):
        for k in tl.static_range(TAPS):
            # Rows of d_pre are those of each direction one after the other; cells are those of the batch.
            at = t + (1 - 2 * direction) * k
            same = (_cell(cells, batch, at, length, own >= 0) == own) & (own >= 0)
            inside = same[:, None] & of_layer[None, :]
            value = _load(d_pre, direction * rows + batch, at, length * width, width, channels, inside)
            total += value * _tap(weight, channels, k, of_layer, TAPS)[None, :]
    start = d_x + (batch * length + t[:, None]) * width + channels[None, :]
    tl.store(start, total.to(d_x.dtype.element_ty), mask=(t < length)[:, None] & of_layer[None, :])


def _tiles(x: Tensor) -> tuple[int, int, int]:
    rows, length, width = x.shape
    return triton.cdiv(length, TOKENS), triton.cdiv(width, CHANNELS), rows


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("gm_train::conv_silu", mutates_args=())
def conv_silu(x: Tensor, cells: Tensor, weight: Tensor, bias: Tensor, bidirectional: bool) -> Tensor:
    """Convolve the tokens of each cell and apply SiLU.

    Args:
        x: (batch, length, channels), float32, bfloat16 or float16.
        cells: int32 (batch, length), not negative, another number for each cell of a row and for its unused tail.
        weight: (channels, taps), contiguous; the last tap is for the token itself.
        bias: (channels,).
        bidirectional: whether to compute the mirrored form as well.

    Returns:
        (directions, batch, length, channels) in the type of x: the causal result and, in reverse order, the mirrored
        one.
    """
    x = _channels_last(x)
    out = torch.empty(1 + bidirectional, *x.shape, dtype=x.dtype, device=x.device)
    _conv_forward_kernel[_tiles(x)](
        x, cells.contiguous(), weight, bias, out, x.stride(0), x.stride(1), x.shape[1], x.shape[2], len(x),
        TWO=bidirectional, TAPS=weight.shape[1], TOKENS=TOKENS, CHANNELS=CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return out


@torch.library.custom_op("gm_train::conv_silu_backward_taps", mutates_args=())
def conv_silu_backward_taps(
    grad: Tensor, x: Tensor, cells: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `conv_silu` before its SiLU, and by taps and bias.

    Args:
        grad: of the output.
        x: as in `conv_silu`.
        cells: as in `conv_silu`.
        weight: as in `conv_silu`.
        bias: as in `conv_silu`.

    Returns:
        The gradients before the SiLU, in the shape and type of `grad` and none of them reversed; and those by the
        taps, that of the token itself first, and by the bias, in parts that the caller adds up: float32 (parts,
        taps + 1, channels).
    """
    x, grad = _channels_last(x), grad.contiguous()
    tiles, _, rows = _tiles(x)
    d_pre = torch.empty_like(grad)
    parts = torch.empty(tiles * rows, weight.shape[1] + 1, x.shape[2], dtype=torch.float32, device=x.device)
    _conv_backward_taps_kernel[_tiles(x)](
        grad, x, cells.contiguous(), weight, bias, d_pre, parts, x.stride(0), x.stride(1), x.shape[1], x.shape[2], rows,
        TWO=len(grad) == 2, TAPS=weight.shape[1], TOKENS=TOKENS, CHANNELS=CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return d_pre, parts


@torch.library.custom_op("gm_train::conv_silu_backward_x", mutates_args=())
def conv_silu_backward_x(d_pre: Tensor, cells: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `conv_silu` by x, contiguous, from the gradients before its SiLU."""
    d_x = torch.empty(d_pre.shape[1:], dtype=d_pre.dtype, device=d_pre.device)
    _conv_backward_x_kernel[_tiles(d_x)](
        d_pre, cells.contiguous(), weight, d_x, d_x.shape[1], d_x.shape[2], len(d_x),
        TWO=len(d_pre) == 2, TAPS=weight.shape[1], TOKENS=TOKENS, CHANNELS=CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return d_x


@conv_silu.register_fake
def _(x: Tensor, cells: Tensor, weight: Tensor, bias: Tensor, bidirectional: bool) -> Tensor:
    return torch.empty(1 + bidirectional, *x.shape, dtype=x.dtype, device=x.device)


@conv_silu_backward_taps.register_fake
def _(grad: Tensor, x: Tensor, cells: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    parts = -(-x.shape[1] // TOKENS) * x.shape[0]
    made = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    return made, torch.empty(parts, weight.shape[1] + 1, x.shape[2], dtype=torch.float32, device=x.device)


@conv_silu_backward_x.register_fake
def _(d_pre: Tensor, cells: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(d_pre.shape[1:], dtype=d_pre.dtype, device=d_pre.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, cells, weight, bias = ctx.saved_tensors
    d_pre, parts = conv_silu_backward_taps(grad, x, cells, weight, bias)
    *taps, d_bias = parts.sum(0).unbind(0)
    d_weight = torch.stack(taps[::-1], dim=1).to(weight.dtype)
    return conv_silu_backward_x(d_pre, cells, weight), None, d_weight, d_bias.to(bias.dtype), None


conv_silu.register_autograd(_backward, setup_context=_keep)

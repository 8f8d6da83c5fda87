"""The convolution of `conv.py` with its SiLU as Triton kernels, for both directions at once.

The forward kernel reads x once and writes the result of each direction once; that of the mirrored direction in reverse
order, as mamba_ssm's scan reads it. The backward kernel reads x and the gradients once, and computes what comes before
the SiLU again. Sums are float32.

This file is imported only where a kernel runs, since Triton is not installed everywhere.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Sizes of a tile in tokens and channels, and its warps. The backward kernel needs many registers (compiled for sm_90).
FORWARD = {"TOKENS": 32, "CHANNELS": 64, "num_warps": 8}
BACKWARD = {"TOKENS": 16, "CHANNELS": 32, "num_warps": 4}
#: Tiles of tokens that one program of the backward kernel goes through; it adds up the gradients of the taps.
TILES = 16
#: Arguments that change with the batch; a kernel is not compiled again for other values.
_COUNTS = ["rows", "tiles_x"]


@triton.jit
def _cell(cells, batch, t, length, wanted):  # type: ignore[no-untyped-def]
    """The number of the cell at each position, or -1 outside of the row."""
    return tl.load(cells + batch * length + t, mask=wanted & (t >= 0) & (t < length), other=-1)


@triton.jit  # type: ignore[untyped-decorator]
def _tap(weight, channels, k, of_layer, TAPS: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(weight + channels * TAPS + (TAPS - 1 - k), mask=of_layer, other=0.0).to(tl.float32)


@triton.jit
def _shifted(start, cells, batch, t, own, stride, length, at, channels, of_layer):  # type: ignore[no-untyped-def]
    """The row `at` + t of an array, as float32; zero where t is not in the cell `own`, and for an `own` of -1."""
    same = (_cell(cells, batch, t, length, own >= 0) == own) & (own >= 0)
    place = start + at[:, None] * stride + channels[None, :]
    return tl.load(place, mask=same[:, None] & of_layer[None, :], other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _filtered(  # type: ignore[no-untyped-def]
    x, cells, weight, bias, batch, t, own, stride, length, channels, of_layer, SIGN: tl.constexpr, TAPS: tl.constexpr
):
    """The convolution before its SiLU: of x_(t-k) if SIGN is 1, of x_(t+k) if it is -1."""
    total = tl.load(bias + channels, mask=of_layer, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(TAPS):
        at = t - SIGN * k
        value = _shifted(x, cells, batch, at, own, stride, length, at, channels, of_layer)
        total = total + value * _tap(weight, channels, k, of_layer, TAPS)[None, :]
    return total


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _conv_forward_kernel(  # type: ignore[no-untyped-def]
    x, cells, weight, bias, out, stride_batch, stride, length, width, rows,
    TWO: tl.constexpr, TAPS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(2).to(tl.int64)
    of_layer = channels < width
    own = _cell(cells, batch, t, length, t < length)
    inside = (t < length)[:, None] & of_layer[None, :]
    x += batch * stride_batch
    for direction in tl.static_range(2 if TWO else 1):
        y = _filtered(
            x, cells, weight, bias, batch, t, own, stride, length, channels, of_layer, 1 - 2 * direction, TAPS
        )
        at = t if direction == 0 else length - 1 - t
        start = out + ((direction * rows + batch) * length + at[:, None]) * width + channels[None, :]
        tl.store(start, (y * tl.sigmoid(y)).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _conv_backward_kernel(  # type: ignore[no-untyped-def]
    grad, x, cells, weight, bias, d_steps, d_x, d_taps, stride_batch, stride, d_stride_batch, d_stride, length, width,
    n_heads, rows, tiles_x, TWO: tl.constexpr, TAPS: tl.constexpr, SUMS: tl.constexpr, TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(2).to(tl.int64)
    x += batch * stride_batch
    d_x += batch * d_stride_batch
    first = tl.program_id(0) * TILES
    last = tl.minimum(first + TILES, tl.cdiv(length, TOKENS))
    if tl.program_id(1) < tiles_x:
        channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        of_layer = channels < width
        kind = tl.arange(0, SUMS)[:, None]
        sums = tl.zeros((SUMS, CHANNELS), dtype=tl.float32)
        for tile in range(first, last):
            t = tile * TOKENS + tl.arange(0, TOKENS)
            own = _cell(cells, batch, t, length, t < length)
            total = tl.zeros((TOKENS, CHANNELS), dtype=tl.float32)
            for direction in tl.static_range(2 if TWO else 1):
                of_direction = grad + (direction * rows + batch) * length * width
                for k in tl.static_range(TAPS):
                    # The outputs that tap k computes from the tokens t.
                    to = t + (1 - 2 * direction) * k
                    y = _filtered(
                        x, cells, weight, bias, batch, to, own, stride, length, channels, of_layer, 1 - 2 * direction,
                        TAPS,
                    )  # fmt: skip
                    sigmoid = tl.sigmoid(y)
                    at = to if direction == 0 else length - 1 - to
                    d_out = _shifted(of_direction, cells, batch, to, own, width, length, at, channels, of_layer)
                    d_y = d_out * sigmoid * (1.0 + y * (1.0 - sigmoid))
                    total += d_y * _tap(weight, channels, k, of_layer, TAPS)[None, :]
                    if k == 0:
                        sums += tl.where(kind == TAPS, tl.sum(d_y, axis=0)[None, :], 0.0)
                        for j in tl.static_range(TAPS):
                            of = t - (1 - 2 * direction) * j
                            value = _shifted(x, cells, batch, of, own, stride, length, of, channels, of_layer)
                            sums += tl.where(kind == TAPS - 1 - j, tl.sum(d_y * value, axis=0)[None, :], 0.0)
            inside = (t < length)[:, None] & of_layer[None, :]
            tl.store(d_x + t[:, None] * d_stride + channels[None, :], total.to(d_x.dtype.element_ty), mask=inside)
        part = d_taps + (batch * tl.num_programs(0) + tl.program_id(0)) * (TAPS + 1) * width
        tl.store(part + kind * width + channels[None, :], sums, mask=(kind <= TAPS) & of_layer[None, :])
    else:
        # The columns behind x are the step sizes: add up the gradients of both directions.
        heads = (tl.program_id(1) - tiles_x) * CHANNELS + tl.arange(0, CHANNELS)
        for tile in range(first, last):
            t = tile * TOKENS + tl.arange(0, TOKENS)
            inside = (t < length)[:, None] & (heads < n_heads)[None, :]
            place = d_steps + (batch * length + t[:, None]) * n_heads + heads[None, :]
            d_step = tl.load(place, mask=inside, other=0.0)
            if TWO:
                at = (rows + batch) * length + length - 1 - t[:, None]
                d_step += tl.load(d_steps + at * n_heads + heads[None, :], mask=inside, other=0.0)
            place = d_x + t[:, None] * d_stride + width + heads[None, :]
            tl.store(place, d_step.to(d_x.dtype.element_ty), mask=inside)


def conv_forward(x: Tensor, cells: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve the tokens of each cell and apply SiLU.

    Args:
        x: (batch, length, channels), channels side by side.
        cells: int32 (directions * batch, length), contiguous: not negative, another number for each cell of a row and
            for its unused tail.
        weight: (channels, taps), contiguous; the last tap is for the token itself.
        bias: (channels,).

    Returns:
        (directions * batch, length, channels) in the type of x: the causal result and, with two directions, the
        mirrored one in reverse order.
    """
    batch, length, width = x.shape
    out = torch.empty(len(cells), length, width, dtype=x.dtype, device=x.device)
    grid = triton.cdiv(length, FORWARD["TOKENS"]), triton.cdiv(width, FORWARD["CHANNELS"]), batch
    _conv_forward_kernel[grid](
        x, cells, weight, bias, out, x.stride(0), x.stride(1), length, width, batch,
        TWO=len(cells) > batch, TAPS=weight.shape[1], **FORWARD,
    )  # fmt: skip
    return out


def conv_backward(
    grad: Tensor, x: Tensor, cells: Tensor, weight: Tensor, bias: Tensor, d_steps: Tensor, d_columns: Tensor
) -> Tensor:
    """Gradients of `conv_forward`; those of the step sizes are added up on the way.

    Args:
        grad: of the output, contiguous.
        x: as in `conv_forward`.
        cells: as in `conv_forward`.
        weight: as in `conv_forward`.
        bias: as in `conv_forward`.
        d_steps: float32 (directions * batch, length, heads), gradients of the raw step sizes as the scan reads them.
        d_columns: (batch, length, channels + heads), columns side by side; the gradients by x and by the step sizes of
            both directions are written here.

    Returns:
        The gradients by taps, in the order of `weight`, and by the bias: float32 (taps + 1, channels).
    """
    batch, length, width = x.shape
    taps, heads = weight.shape[1], d_steps.shape[2]
    tiles_x, tiles_heads = (triton.cdiv(n, BACKWARD["CHANNELS"]) for n in (width, heads))
    grid = triton.cdiv(length, BACKWARD["TOKENS"] * TILES), tiles_x + tiles_heads, batch
    parts = torch.empty(grid[0] * batch, taps + 1, width, dtype=torch.float32, device=x.device)
    _conv_backward_kernel[grid](
        grad, x, cells, weight, bias, d_steps, d_columns, parts, x.stride(0), x.stride(1), d_columns.stride(0),
        d_columns.stride(1), length, width, heads, batch, tiles_x, TWO=len(cells) > batch, TAPS=taps,
        SUMS=triton.next_power_of_2(taps + 1), TILES=TILES, **BACKWARD,
    )  # fmt: skip
    return parts.sum(0)

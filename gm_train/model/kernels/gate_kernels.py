"""The gate of `aggregation.py` with its residual connection as Triton kernels around its matrix products.

x + b + g (f - b), where g = sigmoid(W1 (x + f) + W2 (x + b) + c) and W = [W1 W2]. The kernels write x + f and x + b
side by side, so that there is one product in the forward pass, and one for each gradient in the backward pass. Whatever
is not a product is float32.

This file is imported only where a kernel runs, since Triton is not installed everywhere.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gm_train.model.kernels.scan_tiles import on_device_of

#: Tokens and channels of a tile, and its warps.
TOKENS, CHANNELS, WARPS = 16, 128, 4
#: Tiles of tokens that a program goes through where it adds up the gradient of the bias.
TILES = 8
#: Arguments that change with the batch; a kernel is not compiled again for other values.
_COUNTS = ["n"]


@triton.jit  # type: ignore[untyped-decorator]
def _at(n, width, tile, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tokens, channels, and whether each pair is inside of the array, for a tile of tokens."""
    token = (tile * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    return token, channel, (token < n) & (channel < width)


@triton.jit
def _load(start, at, inside):  # type: ignore[no-untyped-def]
    return tl.load(start + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(start, at, inside, value):  # type: ignore[no-untyped-def]
    tl.store(start + at, value.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _share(pre, bias, at, channel, inside, width):  # type: ignore[no-untyped-def]
    return tl.sigmoid(_load(pre, at, inside) + _load(bias, channel, channel < width))


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _gate_sums_kernel(x, both, sums, n, width, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    token, channel, inside = _at(n, width, tl.program_id(0), TOKENS, CHANNELS)
    at, of_sums = token * width + channel, token * 2 * width + channel
    value = _load(x, at, inside)
    _store(sums, of_sums, inside, value + _load(both, at, inside))
    _store(sums, of_sums + width, inside, value + _load(both, n * width + at, inside))


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _gate_forward_kernel(  # type: ignore[no-untyped-def]
    x, both, pre, bias, out, n, width, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
):
    token, channel, inside = _at(n, width, tl.program_id(0), TOKENS, CHANNELS)
    at = token * width + channel
    share = _share(pre, bias, at, channel, inside, width)
    f, b = _load(both, at, inside), _load(both, n * width + at, inside)
    _store(out, at, inside, _load(x, at, inside) + (b + share * (f - b)))


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _gate_backward_pre_kernel(  # type: ignore[no-untyped-def]
    grad, both, pre, bias, d_pre, d_bias, n, width, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr
):
    summed = tl.zeros((CHANNELS,), dtype=tl.float32)
    for i in range(TILES):
        token, channel, inside = _at(n, width, tl.program_id(0) * TILES + i, TOKENS, CHANNELS)
        at = token * width + channel
        share = _share(pre, bias, at, channel, inside, width)
        difference = _load(both, at, inside) - _load(both, n * width + at, inside)
        value = _load(grad, at, inside) * difference * share * (1.0 - share)
        _store(d_pre, at, inside, value)
        summed += tl.sum(value, axis=0)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    tl.store(d_bias + tl.program_id(0) * width + channels, summed, mask=channels < width)


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _gate_backward_kernel(  # type: ignore[no-untyped-def]
    grad, pre, bias, d_sums, d_x, d_both, n, width, TOKENS: tl.constexpr, CHANNELS: tl.constexpr
):
    token, channel, inside = _at(n, width, tl.program_id(0), TOKENS, CHANNELS)
    at, of_sums = token * width + channel, token * 2 * width + channel
    share = _share(pre, bias, at, channel, inside, width)
    value = _load(grad, at, inside)
    d_f, d_b = _load(d_sums, of_sums, inside), _load(d_sums, of_sums + width, inside)
    _store(d_x, at, inside, value + d_f + d_b)
    _store(d_both, at, inside, d_f + value * share)
    _store(d_both, n * width + at, inside, d_b + value * (1.0 - share))


def _grid(n: int, width: int, tiles: int = 1) -> tuple[int, int]:
    return triton.cdiv(n, TOKENS * tiles), triton.cdiv(width, CHANNELS)


def _options() -> dict[str, int]:
    return {"TOKENS": TOKENS, "CHANNELS": CHANNELS, "num_warps": WARPS}


@torch.library.custom_op("gm_train::gate", mutates_args=())
def gate(x: Tensor, both: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Join the directions of a layer and add the residual connection.

    Args:
        x: (..., width), the layer's input.
        both: (2, ..., width), the mixer's outputs of the forward and of the reverse direction.
        weight: (width, 2 * width), in the type of `both`.
        bias: (width,).

    Returns:
        The result in the shape and type of x; and what the backward pass needs.
    """
    width = x.shape[-1]
    x, both, n = x.contiguous(), both.contiguous(), x.numel() // width
    sums = torch.empty(n, 2 * width, dtype=both.dtype, device=x.device)
    out = torch.empty_like(x)
    with on_device_of(x):
        _gate_sums_kernel[_grid(n, width)](x, both, sums, n, width, **_options())
        pre = torch.mm(sums, weight.T)
        _gate_forward_kernel[_grid(n, width)](x, both, pre, bias, out, n, width, **_options())
    return out, sums, pre


@torch.library.custom_op("gm_train::gate_backward", mutates_args=())
def gate_backward(
    grad: Tensor, both: Tensor, weight: Tensor, bias: Tensor, sums: Tensor, pre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gate` by x, both and weight in their types, and by the bias in float32."""
    grad, both = grad.contiguous(), both.contiguous()
    n, width = pre.shape
    d_pre = torch.empty_like(pre)
    grid = _grid(n, width, TILES)
    parts = torch.empty(grid[0], width, dtype=torch.float32, device=grad.device)
    d_x, d_both = torch.empty_like(grad), torch.empty_like(both)
    with on_device_of(grad):
        _gate_backward_pre_kernel[grid](grad, both, pre, bias, d_pre, parts, n, width, TILES=TILES, **_options())
        d_bias = parts.sum(0)
        d_sums = torch.mm(d_pre, weight)
        _gate_backward_kernel[_grid(n, width)](grad, pre, bias, d_sums, d_x, d_both, n, width, **_options())
    return d_x, d_both, torch.mm(d_pre.T, sums), d_bias


@gate.register_fake
def _(x: Tensor, both: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, width = x.numel() // x.shape[-1], x.shape[-1]
    sums, pre = (torch.empty(n, columns, dtype=both.dtype, device=x.device) for columns in (2 * width, width))
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), sums, pre


@gate_backward.register_fake
def _(
    grad: Tensor, both: Tensor, weight: Tensor, bias: Tensor, sums: Tensor, pre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x, d_both, d_weight = (
        torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in (grad, both, weight)
    )
    return d_x, d_both, d_weight, torch.empty(bias.shape, dtype=torch.float32, device=bias.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    saved = ctx.saved_tensors  # activation checkpointing lets it be read only once
    d_x, d_both, d_weight, d_bias = gate_backward(grad, *saved)
    return d_x, d_both, d_weight, d_bias.to(saved[2].dtype)


gate.register_autograd(_backward, setup_context=_keep)

"""What a Mamba-2 mixer computes between its projections, in both directions, as one operation of PyTorch on a GPU.

Convolution, step sizes, scan and gated norm are kernels of their own; here they are put together, so that

- both directions are one scan, of twice as many rows, and nothing is flipped before or after it;
- the gradients by all columns of the input projection are written into one array, with nothing to split or join;
- a compiled graph has one node for each pass.

This file is imported only where a kernel runs, since Triton is not installed everywhere.
"""

from typing import Any

import torch
from torch import Tensor

from gm_train.model.kernels.conv_kernels import conv_backward, conv_forward
from gm_train.model.kernels.norm_kernels import LARGEST, norm_backward, norm_forward
from gm_train.model.kernels.package_scan import scan_backward, scan_forward
from gm_train.model.kernels.scan_tiles import on_device_of
from gm_train.model.kernels.step_kernels import steps_backward, steps_forward


def takes(columns: Tensor, d_inner: int) -> bool:
    """Whether the kernels can run on arrays of the type of `columns` and of this width."""
    return columns.dtype in (torch.float32, torch.bfloat16, torch.float16) and 0 < d_inner <= LARGEST


def _split(columns: Tensor, inner: int, channels: int, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """z, xBC, raw step sizes and, with head_gate, the logits of the forward direction's share, as views."""
    gates = columns.shape[-1] - inner - channels - heads
    z, xBC, raw, g = torch.split(columns, [inner, channels, heads, gates], dim=-1)
    return z, xBC, raw, g if gates else None


@torch.library.custom_op("gm_train::mix", mutates_args=())
def mix(
    columns: Tensor, cells: Tensor, taps: Tensor, conv_bias: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor,
    weight: Tensor, eps: float, d_state: int, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Convolve, scan and normalise the tokens of each cell.

    Args:
        columns: (batch, length, d_inner + channels + heads or, with head_gate, + 2 heads), from the input projection:
            z, xBC, raw step sizes, logits of the gates; float32, bfloat16 or float16.
        cells: int32 (batch, length), or (2 * batch, length) to read from the right as well: from 1, another number for
            each cell of a row and for its unused tail; the second half reversed.
        taps: (channels, 1, taps) of the convolution; the last one is for the token itself.
        conv_bias: (channels,), with channels = d_inner + 2 * d_state.
        dt_bias: (heads,).
        A_log: (heads,).
        D: (heads,).
        weight: (d_inner,) of the norm.
        eps: of the norm.
        d_state: width of B and C.
        chunk: positions in a chunk of the scan.

    Returns:
        The results (directions, batch, length, d_inner), or (1, ...) with head_gate, in the type of `columns`; and what
        the backward pass needs.
    """
    z, xBC, raw, gates = _split(columns, len(weight), len(conv_bias), len(A_log))
    with on_device_of(columns):
        mixed = conv_forward(xBC, cells, taps.flatten(1), conv_bias)
        dt, decay = steps_forward(raw, dt_bias, A_log, len(cells) // len(columns), chunk)
        y, states = scan_forward(mixed, dt, decay, D, cells, d_state)
        return norm_forward(z, gates, y, weight, eps), mixed, dt, decay, states, y


@torch.library.custom_op("gm_train::mix_backward", mutates_args=())
def mix_backward(
    grad: Tensor, columns: Tensor, cells: Tensor, taps: Tensor, conv_bias: Tensor, dt_bias: Tensor, A_log: Tensor,
    D: Tensor, weight: Tensor, mixed: Tensor, dt: Tensor, decay: Tensor, states: Tensor, y: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of `mix` by its columns, and float32 ones of its parameters.

    Returns:
        The gradients by `columns`; by taps (taps first, then channels) and bias of the convolution, (taps + 1,
        channels); by A_log, dt_bias and D, (3, heads); and by the weight of the norm.
    """
    d_columns = torch.empty(columns.shape, dtype=columns.dtype, device=columns.device)
    sizes = len(weight), len(conv_bias), len(A_log)
    z, xBC, raw, gates = _split(columns, *sizes)
    with on_device_of(columns):
        d_y, of_norm = norm_backward(grad.contiguous(), z, gates, y, weight, eps, d_columns)
        d_mixed, gradients = scan_backward(d_y, mixed, dt, decay, D, cells, states)
        d_raw, of_scan = steps_backward(raw, dt_bias, A_log, dt, gradients)
        d_convolved = d_columns[..., sizes[0] : sum(sizes)]
        of_conv = conv_backward(d_mixed, xBC, cells, taps.flatten(1), conv_bias, d_raw, d_convolved)
    return d_columns, of_conv, of_scan, of_norm


@mix.register_fake
def _(
    columns: Tensor, cells: Tensor, taps: Tensor, conv_bias: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor,
    weight: Tensor, eps: float, d_state: int, chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows, length = cells.shape
    batch, heads, inner = columns.shape[0], len(A_log), len(weight)
    join = columns.shape[2] > inner + len(conv_bias) + heads
    chunks = -(-length // chunk)

    def made(*shape: int, wide: bool = False) -> Tensor:
        return torch.empty(shape, dtype=torch.float32 if wide else columns.dtype, device=columns.device)

    return (
        made(1 if join else rows // batch, batch, length, inner),
        made(rows, length, len(conv_bias)),
        made(rows, heads, chunks, chunk, wide=True),
        made(rows, heads, chunks, chunk, wide=True),
        made(rows, chunks, heads, inner // heads, d_state),
        made(rows, length, heads, inner // heads),
    )


@mix_backward.register_fake
def _(
    grad: Tensor, columns: Tensor, cells: Tensor, taps: Tensor, conv_bias: Tensor, dt_bias: Tensor, A_log: Tensor,
    D: Tensor, weight: Tensor, mixed: Tensor, dt: Tensor, decay: Tensor, states: Tensor, y: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    def made(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=columns.device)

    d_columns = torch.empty(columns.shape, dtype=columns.dtype, device=columns.device)
    return d_columns, made(taps.shape[2] + 1, len(conv_bias)), made(3, len(A_log)), made(len(weight))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, _, _ = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 11
    saved = ctx.saved_tensors  # activation checkpointing lets it be read only once
    parameters = saved[2:8]
    d_columns, of_conv, of_scan, d_weight = mix_backward(grad, *saved, ctx.eps)
    d_A_log, d_dt_bias, d_D = of_scan.unbind(0)
    d_taps = of_conv[:-1].T.contiguous().unsqueeze(1)
    made = (d_taps, of_conv[-1], d_dt_bias, d_A_log, d_D, d_weight)
    narrow = (value.to(parameter.dtype) for value, parameter in zip(made, parameters, strict=True))
    return d_columns, None, *narrow, None, None, None


mix.register_autograd(_backward, setup_context=_keep)

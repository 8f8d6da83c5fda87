"""The gated norm of `norm.py` as two Triton kernels, one for each pass, over both directions of a layer at once.

Each kernel reads z, and the y of every direction, once and writes each result once. The y of the reverse direction are
read as the scan writes them, from the end of the row. With `head_gate` the kernels also join the directions before the
norm. SiLU(z), squares, sums and products are float32, whatever the type of the arrays. Nothing but the inputs is kept
for the backward pass.

This file is imported only where a kernel runs, since Triton is not installed everywhere.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 1024  # of the backward kernel; each adds up the gradient of the weight over its own tokens
LARGEST = 16_384  # channels that one program holds
#: Arguments that change with the batch; a kernel is not compiled again for other values.
_COUNTS = ["rows", "each"]


@triton.jit
def _load(start, at, inside):  # type: ignore[no-untyped-def]
    return tl.load(start + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(start, at, inside, value):  # type: ignore[no-untyped-def]
    tl.store(start + at, value.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _normed(y, gate, width, eps):  # type: ignore[no-untyped-def]
    gated = y * gate
    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(gated * gated, axis=1), axis=0) / width + eps)
    return gated * scale, scale


@triton.jit
def _gradient(grad, y, gate, weight, width, eps):  # type: ignore[no-untyped-def]
    """Gradients by y and by the gate, and one token's part of the gradient by the weight."""
    normed, scale = _normed(y, gate, width, eps)
    weighted = grad * weight
    mean = tl.sum(tl.sum(weighted * normed, axis=1), axis=0) / width
    d_gated = (weighted - normed * mean) * scale
    return d_gated * gate, d_gated * y, grad * normed


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _gated_norm_forward_kernel(  # type: ignore[no-untyped-def]
    columns, gates, y, weight, out, stride_batch, stride, length, rows, n_heads, head_dim, eps,
    TWO: tl.constexpr, JOIN: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    t, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    width = n_heads * head_dim
    inside = (head < n_heads) & (place < head_dim)
    at = head * head_dim + place
    token = batch * stride_batch + t * stride
    z = _load(columns + token, at, inside)
    gate = z * tl.sigmoid(z)
    scaled_by = _load(weight, at, inside)
    forward = batch * length + t
    reverse = (rows + batch) * length + length - 1 - t
    first = _load(y + forward * width, at, inside)
    if JOIN:
        share = tl.sigmoid(_load(gates + token, head, head < n_heads))
        second = _load(y + reverse * width, at, inside)
        first = second + share * (first - second)
    normed, _ = _normed(first, gate, width, eps)
    _store(out + forward * width, at, inside, normed * scaled_by)
    if TWO:
        normed, _ = _normed(_load(y + reverse * width, at, inside), gate, width, eps)
        _store(out + ((rows + batch) * length + t) * width, at, inside, normed * scaled_by)


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _gated_norm_backward_kernel(  # type: ignore[no-untyped-def]
    grad, columns, gates, y, weight, d_columns, d_gates, d_y, d_weight, stride_batch, stride, d_stride_batch, d_stride,
    length, rows, each, n_heads, head_dim, eps,
    TWO: tl.constexpr, JOIN: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, DIM)[None, :]
    width = n_heads * head_dim
    channel = (head < n_heads) & (place < head_dim)
    at = head * head_dim + place
    scaled_by = _load(weight, at, channel)
    summed = tl.zeros((HEADS, DIM), dtype=tl.float32)
    for i in range(each):
        forward = program * each + i
        used = forward < rows * length
        inside = channel & used
        batch, t = forward // length, forward % length
        reverse = (rows + batch) * length + length - 1 - t
        token, to = batch * stride_batch + t * stride, batch * d_stride_batch + t * d_stride
        z = _load(columns + token, at, inside)
        sigmoid = tl.sigmoid(z)
        gate = z * sigmoid
        first = _load(y + forward * width, at, inside)
        d_out = _load(grad + forward * width, at, inside)
        if JOIN:
            of_heads = (head < n_heads) & used
            share = tl.sigmoid(_load(gates + token, head, of_heads))
            second = _load(y + reverse * width, at, inside)
            d_joined, d_gate, part = _gradient(d_out, second + share * (first - second), gate, scaled_by, width, eps)
            d_share = tl.sum(d_joined * (first - second), axis=1)[:, None] * share * (1.0 - share)
            _store(d_gates + to, head, of_heads, d_share)
            _store(d_y + forward * width, at, inside, d_joined * share)
            _store(d_y + reverse * width, at, inside, d_joined * (1.0 - share))
        else:
            d_first, d_gate, part = _gradient(d_out, first, gate, scaled_by, width, eps)
            _store(d_y + forward * width, at, inside, d_first)
        summed += part
        if TWO:
            second = _load(y + reverse * width, at, inside)
            d_out = _load(grad + ((rows + batch) * length + t) * width, at, inside)
            d_second, d_gate_2, part = _gradient(d_out, second, gate, scaled_by, width, eps)
            _store(d_y + reverse * width, at, inside, d_second)
            summed += part
            d_gate += d_gate_2
        _store(d_columns + to, at, inside, d_gate * sigmoid * (1.0 + z * (1.0 - sigmoid)))
    _store(d_weight + program * width, at, channel, summed)


def _options(width: int, heads: int, join: bool) -> dict[str, int]:
    """Sizes of the tile of a token: heads side by side only where each has a weight of its own."""
    rows, columns = (heads, width // heads) if join else (1, width)
    rows, columns = triton.next_power_of_2(rows), triton.next_power_of_2(columns)
    return {"HEADS": rows, "DIM": columns, "num_warps": min(16, max(1, rows * columns // 256))}


def norm_forward(z: Tensor, gates: Tensor | None, y: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of y * SiLU(z), for the y of each direction or for their joined y.

    Args:
        z: (batch, length, heads * head_dim), channels side by side.
        gates: (batch, length, heads), in the same rows as z: the logits of the forward direction's share in the joined
            y; None to keep the directions apart.
        y: (directions * batch, length, heads, head_dim), contiguous, the reverse direction in reverse order.
        weight: (heads * head_dim,).
        eps: added to the mean square.

    Returns:
        (results, batch, length, heads * head_dim), in the order of the tokens and the type of y.
    """
    batch, length, width = z.shape
    two, join = len(y) > batch and gates is None, gates is not None
    heads, dim = y.shape[2:] if join else (1, width)
    out = torch.empty(1 + two, batch, length, width, dtype=y.dtype, device=y.device)
    _gated_norm_forward_kernel[(length, batch)](
        z, gates if join else z, y, weight, out, z.stride(0), z.stride(1), length, batch, heads, dim, eps,
        TWO=two, JOIN=join, **_options(width, heads, join),
    )  # fmt: skip
    return out


def norm_backward(
    grad: Tensor, z: Tensor, gates: Tensor | None, y: Tensor, weight: Tensor, eps: float, d_columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `norm_forward`.

    Args:
        grad: of the output, contiguous.
        z: as in `norm_forward`, the first of the columns of the input projection; `gates` are its last ones.
        gates: as in `norm_forward`.
        y: as in `norm_forward`.
        weight: as in `norm_forward`.
        eps: as in `norm_forward`.
        d_columns: (batch, length, columns), columns side by side; the gradients by z and by the gates are written here.

    Returns:
        The gradient by y, in its shape and type, and that by the weight, float32 (heads * head_dim,).
    """
    batch, length, width = z.shape
    two, join = len(y) > batch and gates is None, gates is not None
    heads, dim = y.shape[2:] if join else (1, width)
    each = max(1, triton.cdiv(batch * length, _PROGRAMS))
    d_y, d_z = torch.empty_like(y), d_columns[..., :width]
    parts = torch.empty(triton.cdiv(batch * length, each), width, dtype=torch.float32, device=y.device)
    _gated_norm_backward_kernel[(len(parts),)](
        grad, z, gates if join else z, y, weight, d_z, d_columns[..., -heads:] if join else d_z, d_y, parts,
        z.stride(0), z.stride(1), d_columns.stride(0), d_columns.stride(1), length, batch, each, heads, dim, eps,
        TWO=two, JOIN=join, **_options(width, heads, join),
    )  # fmt: skip
    return d_y, parts.sum(0)

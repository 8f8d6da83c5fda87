"""The selective state-space scan as matrix products over chunks (state-space duality).

Mamba-2's recurrence for each head, with a scalar decay and one group of B and C (Dao and Gu 2024, arXiv 2405.21060):

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t        y_t = C_t h_t + D x_t

Within a chunk y = S x, where S_ij = (C_i B_j) exp(sum of dt A over j+1..i) dt_j for j <= i, with D added on the
diagonal; between chunks only states are carried. The reverse direction reads the same arrays from the right without
flipping them: h_t = exp(dt_t A) h_(t+1) + dt_t B_t x_t, so its sum runs over i..j-1, for j >= i.

The code computes powers of 2 instead of e, with exponents divided by ln 2: PyTorch's CPU exp is many times slower on
strongly negative exponents, which a decay has.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.model.segments import Segments

DT_FLOOR = 1e-30  # keeps the logarithm finite where softplus underflows


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segments: Segments, reverse: bool = False
) -> Tensor:
    """Scan packed rows; no information passes from one cell to another.

    The decay is computed in the type of `dt`, which should be float32 or float64 even when `x`, `B` and `C` are
    narrower.

    Args:
        x: (batch, length, heads, head_dim).
        dt: (batch, length, heads), positive step sizes.
        A: (heads,), negative.
        B: (batch, length, d_state).
        C: (batch, length, d_state).
        D: (heads,), weight of the skip connection.
        segments: boundaries of the same rows.
        reverse: read from the right.

    Returns:
        y, (batch, length, heads, head_dim), in the type of `x`.
    """
    batch, length, heads, width = x.shape
    chunk = segments.chunk
    fill = -length % chunk
    if fill:
        x, dt, B, C = F.pad(x, (0, 0, 0, 0, 0, fill)), *(F.pad(v, (0, 0, 0, fill)) for v in (dt, B, C))
    n_chunks = (length + fill) // chunk
    n = batch * n_chunks
    bounds = segments.reverse if reverse else segments.forward
    x, B, C = x.reshape(n, chunk, heads, width), B.reshape(n, chunk, -1), C.reshape(n, chunk, -1)

    # Sums of dt A from the start of the chunk, or of the cell if that is later, to each position: including the
    # position (forward) or up to the one before (reverse). They are a matrix product in float64, which neither autocast
    # nor TF32 narrows. Since each cell starts at zero, its neighbours do not even change the rounding.
    log_decay = (dt * (A / math.log(2))).view(n, chunk, heads)
    inclusive = (segments.sums @ log_decay.double()).to(dt.dtype)
    total = inclusive[:, -1:]
    if reverse:
        exclusive = inclusive - log_decay
        level, to_exit, from_entry = -exclusive, exclusive, total - exclusive
    else:
        level, to_exit, from_entry = inclusive, total - inclusive, inclusive

    log_dt = dt.clamp(min=DT_FLOOR).log2().view(n, chunk, heads)
    row, column = level.transpose(1, 2), (log_dt - level).transpose(1, 2)
    products = C @ B.transpose(1, 2)
    scores: Tensor = _Scores.apply(products, row, column, D, bounds.within)  # type: ignore[no-untyped-call]
    y = (scores @ x.transpose(1, 2)).transpose(1, 2)
    if n_chunks > 1:
        weight = (to_exit + log_dt + bounds.into).exp2()
        states = B.transpose(1, 2) @ (x * weight[..., None]).view(n, chunk, -1)
        entering = _carry(states.view(batch, n_chunks, -1, heads, width), total.exp2(), bounds.carry, reverse)
        carried = (C @ entering.view(n, -1, heads * width)).view(n, chunk, heads, width)
        y = carried * (from_entry + bounds.out).exp2()[..., None] + y
    return y.reshape(batch, length + fill, heads, width)[:, :length].to(x.dtype)


class _Scores(torch.autograd.Function):
    """scores_ij = products_ij 2^(row_i + column_j + within_ij), plus D on the diagonal.

    The gradient is written by hand because autograd makes twice as many passes over arrays of (n, heads, chunk, chunk).
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, row: Tensor, column: Tensor, D: Tensor, within: Tensor) -> Tensor:
        # The mask is added before the power: where i may not read j, the exponent is positive and could overflow.
        decay = (row[..., :, None] + column[..., None, :]).add_(within).exp2_()
        scores = products[:, None] * decay
        scores.diagonal(dim1=-2, dim2=-1).add_(D[:, None])
        ctx.save_for_backward(products, decay)
        return scores.to(products.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        products, decay = ctx.saved_tensors
        d_D = grad.diagonal(dim1=-2, dim2=-1).sum((0, 2), dtype=decay.dtype)
        weighted = grad * decay
        d_products = weighted.sum(1).to(products.dtype)
        weighted *= products[:, None]
        d_row = weighted.sum(-1) * math.log(2)
        d_column = weighted.sum(-2) * math.log(2)
        return d_products, d_row, d_column, d_D, None


def _carry(states: Tensor, decay: Tensor, carry: Tensor, reverse: bool) -> Tensor:
    """Compute the state that enters each chunk from what each chunk adds to the state that leaves it.

    Args:
        states: (batch, n_chunks, d_state, heads, head_dim), what each chunk adds.
        decay: (batch * n_chunks, 1, heads), over a whole chunk.
        carry: bool (batch, n_chunks, 1), whether the entering state also leaves.

    Returns:
        The entering states, in the shape of `states`.
    """
    batch, n_chunks, _, heads, _ = states.shape
    keep = (decay.view(batch, n_chunks, 1, heads, 1) * carry[..., None, None]).unbind(1)
    leaving = states.unbind(1)
    state = torch.zeros_like(leaving[0])
    entering = [state]
    order = range(n_chunks - 1, 0, -1) if reverse else range(n_chunks - 1)
    for c in order:
        state = torch.addcmul(leaving[c], state, keep[c])
        entering.append(state)
    return torch.stack(entering[::-1] if reverse else entering, dim=1)

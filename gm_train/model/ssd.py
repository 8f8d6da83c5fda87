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

from torch import Tensor
from torch.nn import functional as F

from gm_train.model.chunk_scan import ChunkScan
from gm_train.model.scan_limits import DT_FLOOR
from gm_train.model.segments import Segments


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
    bounds = segments.reverse if reverse else segments.forward
    x, B, C = (value.view(batch, n_chunks, chunk, *value.shape[2:]) for value in (x, B, C))

    # Sums of dt A from the start of the chunk, or of the cell if that is later, to each position: including the
    # position (forward) or up to the one before (reverse). They are a matrix product in float64, which neither autocast
    # nor TF32 narrows. Since each cell starts at zero, its neighbours do not even change the rounding.
    log_decay = (dt * (A / math.log(2))).view(-1, chunk, heads)
    inclusive = (segments.sums @ log_decay.double()).to(dt.dtype)
    total = inclusive[:, -1].view(batch, n_chunks, heads)
    level = (log_decay - inclusive if reverse else inclusive).view(batch, n_chunks, chunk, heads)
    log_dt = dt.clamp(min=DT_FLOOR).log2().view_as(level)
    y: Tensor = ChunkScan.apply(  # type: ignore[no-untyped-call]
        x, B, C, D, level.transpose(2, 3).contiguous(), (log_dt - level).transpose(2, 3).contiguous(), total,
        bounds.within, bounds.into, bounds.out, bounds.carry, reverse,
    )  # fmt: skip
    return y.reshape(batch, length + fill, heads, width)[:, :length]

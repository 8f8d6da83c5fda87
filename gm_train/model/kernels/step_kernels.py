"""Step sizes and decay of the scan as Triton kernels: softplus, sums over chunks, and the gradients of both.

With raw step sizes r from the input projection, dt = softplus(r + dt_bias), and the decay of a chunk is the running sum
of dt A with A = -exp(A_log). The kernels read r in place, and the reverse direction's from the end of the row. They
take the part of mamba_ssm's kernels for the same sums, whose softplus loses digits of small step sizes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS, WARPS = 16, 4  # heads of a tile, the work of one program, and its warps
#: Arguments that change with the batch; a kernel is not compiled again for other values.
_COUNTS = ["rows"]


@triton.jit
def _log1p(x):  # type: ignore[no-untyped-def]
    """The logarithm of 1 + x without loss of digits for small x >= 0 (Kahan)."""
    sum_ = 1.0 + x
    return tl.where(sum_ == 1.0, x, tl.log(sum_) * (x / (sum_ - 1.0 + (sum_ == 1.0).to(tl.float32))))


@triton.jit
def _raw(columns, dt_bias, rows, length, stride_batch, stride_token, row, t, heads, of_layer, inside):  # type: ignore[no-untyped-def]
    """r + dt_bias, (heads, tokens); rows from `rows` on are read from their end."""
    batch = (row % rows).to(tl.int64)
    at = tl.where(row < rows, t, length - 1 - t)
    raw = tl.load(columns + batch * stride_batch + at[None, :] * stride_token + heads[:, None], mask=inside, other=0.0)
    return raw.to(tl.float32) + tl.load(dt_bias + heads, mask=of_layer, other=0.0).to(tl.float32)[:, None]


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _steps_forward_kernel(  # type: ignore[no-untyped-def]
    columns, dt_bias, A_log, dt, decay, stride_batch, stride_token, rows, length, n_heads, chunk,
    HEADS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0), tl.program_id(1)
    heads = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    offset = tl.arange(0, CHUNK)
    t = c * chunk + offset
    of_layer = heads < n_heads
    inside = of_layer[:, None] & ((offset < chunk) & (t < length))[None, :]
    raw = _raw(columns, dt_bias, rows, length, stride_batch, stride_token, row, t, heads, of_layer, inside)
    step = tl.where(inside, tl.maximum(raw, 0.0) + _log1p(tl.exp(-tl.abs(raw))), 0.0)
    A = -tl.exp(tl.load(A_log + heads, mask=of_layer, other=0.0).to(tl.float32))
    at = ((row.to(tl.int64) * n_heads + heads[:, None]) * tl.num_programs(1) + c) * chunk + offset[None, :]
    stored = of_layer[:, None] & (offset < chunk)[None, :]
    tl.store(dt + at, step, mask=stored)
    tl.store(decay + at, tl.cumsum(step * A[:, None], axis=1), mask=stored)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of(values, n: tl.constexpr, stride, at, mask):  # type: ignore[no-untyped-def]
    total = tl.load(values + at, mask=mask, other=0.0)
    for i in tl.static_range(1, n):
        total += tl.load(values + i * stride + at, mask=mask, other=0.0)
    return total


@triton.jit(do_not_specialize=_COUNTS)  # type: ignore[untyped-decorator]
def _steps_backward_kernel(  # type: ignore[no-untyped-def]
    columns, dt_bias, A_log, dt, d_dt, within, after, before, carried, d_D, d_raw, parts,
    stride_batch, stride_token, rows, length, n_heads, chunk,
    TILES_X: tl.constexpr, TILES_M: tl.constexpr, TILES_B: tl.constexpr, TILES_S: tl.constexpr,
    TILES_D: tl.constexpr, HEADS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0), tl.program_id(1)
    n_chunks = tl.num_programs(1)
    heads = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    offset = tl.arange(0, CHUNK)
    t = c * chunk + offset
    of_layer = heads < n_heads
    of_chunk = of_layer[:, None] & (offset < chunk)[None, :]
    inside = of_chunk & (t < length)[None, :]
    place = (row.to(tl.int64) * n_heads + heads) * n_chunks + c  # of each head's chunk
    at = place[:, None] * chunk + offset[None, :]
    whole = tl.num_programs(0).to(tl.int64) * n_heads * n_chunks

    # The gradient of dt A at each position: of scores within the chunk, of the state that leaves it (a sum over the
    # positions before), and of what reads the entering state (a sum over the position and all after it).
    by_rows = place[:, None] * (TILES_M * chunk) + offset[None, :]
    gradient = _sum_of(within, TILES_M, chunk, by_rows, of_chunk)
    leaving = _sum_of(after, TILES_B, whole * chunk, at, of_chunk & (offset > 0)[None, :])
    gradient += tl.cumsum(leaving, axis=1)
    entering = _sum_of(before, TILES_B, whole * chunk, at, of_chunk)
    total = _sum_of(carried, TILES_S, 1, place * TILES_S, of_layer)
    entering += tl.where((offset == chunk - 1)[None, :], total[:, None], 0.0)
    gradient += tl.cumsum(entering, axis=1, reverse=True)
    gradient = tl.where(inside, gradient, 0.0)

    A = -tl.exp(tl.load(A_log + heads, mask=of_layer, other=0.0).to(tl.float32))
    d_step = gradient * A[:, None] + _sum_of(d_dt, TILES_X, whole * chunk, at, inside)
    raw = _raw(columns, dt_bias, rows, length, stride_batch, stride_token, row, t, heads, of_layer, inside)
    d_pre = tl.where(inside, d_step * tl.sigmoid(raw), 0.0)
    tl.store(d_raw + (row.to(tl.int64) * length + t[None, :]) * n_heads + heads[:, None], d_pre, mask=inside)

    # Parts of the gradients by A_log, dt_bias and D.
    part = parts + (row.to(tl.int64) * n_chunks + c) * 3 * n_heads + heads
    step = tl.load(dt + at, mask=inside, other=0.0)
    tl.store(part, tl.sum(gradient * step, axis=1) * A, mask=of_layer)
    tl.store(part + n_heads, tl.sum(d_pre, axis=1), mask=of_layer)
    of_D = (row.to(tl.int64) * n_chunks + c) * n_heads + heads
    tl.store(part + 2 * n_heads, _sum_of(d_D, TILES_D, whole, of_D, of_layer), mask=of_layer)


def _grid(rows: int, length: int, heads: int, chunk: int) -> tuple[int, int, int]:
    return rows, triton.cdiv(length, chunk), triton.cdiv(heads, HEADS)


def steps_forward(raw: Tensor, dt_bias: Tensor, A_log: Tensor, directions: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Compute step sizes and decay.

    Args:
        raw: (batch, length, heads), columns of the input projection, side by side.
        dt_bias: (heads,).
        A_log: (heads,).
        directions: 2 to add the rows in reverse order.
        chunk: positions in a chunk.

    Returns:
        dt and the running sums of dt A in each chunk, float32 (directions * batch, heads, chunks, chunk); behind the
        end of a row dt is zero.
    """
    batch, length, heads = raw.shape
    grid = _grid(directions * batch, length, heads, chunk)
    dt, decay = (
        torch.empty(directions * batch, heads, grid[1], chunk, dtype=torch.float32, device=raw.device) for _ in range(2)
    )
    _steps_forward_kernel[grid](
        raw, dt_bias, A_log, dt, decay, raw.stride(0), raw.stride(1), batch, length, heads, chunk,
        HEADS=HEADS, CHUNK=triton.next_power_of_2(chunk), num_warps=WARPS,
    )  # fmt: skip
    return dt, decay


def steps_backward(
    raw: Tensor, dt_bias: Tensor, A_log: Tensor, dt: Tensor, gradients: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients by what `steps_forward` takes, and the sum of the parts of D's.

    Args:
        raw: as in `steps_forward`.
        dt_bias: as in `steps_forward`.
        A_log: as in `steps_forward`.
        dt: what `steps_forward` returned.
        gradients: what `scan_backward` returns, in tiles that are added up here.

    Returns:
        The gradient by `raw` of each direction, float32 (directions * batch, length, heads), and those by A_log,
        dt_bias and D, float32 (3, heads).
    """
    batch, length, heads = raw.shape
    rows, _, n_chunks, chunk = dt.shape
    d_raw = torch.empty(rows, length, heads, dtype=torch.float32, device=raw.device)
    parts = torch.empty(rows * n_chunks, 3, heads, dtype=torch.float32, device=raw.device)
    g = gradients
    _steps_backward_kernel[_grid(rows, length, heads, chunk)](
        raw, dt_bias, A_log, dt, g["dt"], g["within"], g["after"], g["before"], g["carried"], g["D"], d_raw, parts,
        raw.stride(0), raw.stride(1), batch, length, heads, chunk,
        TILES_X=len(g["dt"]), TILES_M=g["within"].shape[-2], TILES_B=len(g["after"]), TILES_S=g["carried"].shape[-1],
        TILES_D=len(g["D"]), HEADS=HEADS, CHUNK=triton.next_power_of_2(chunk), num_warps=WARPS,
    )  # fmt: skip
    return d_raw, parts.sum(0)

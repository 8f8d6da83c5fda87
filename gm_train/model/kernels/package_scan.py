"""The scan from mamba_ssm's Triton kernels, launched one by one.

The package's own function launches the same kernels, and besides them copies and sums: it computes again what the
forward pass has computed, clears arrays before it adds to them, and sums over one part. Here the states between chunks
are kept, every kernel writes to its own place, and no sum depends on an order (the package's kernels store instead of
adding if DETERMINISTIC_REDUCTION is set). Softplus, the decay and their gradients are kernels of ours
(`step_kernels.py`). Heads share one group of B and C.
"""

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from gm_train.model.kernels.scan_tiles import launch, tile

_DOT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def parts_of(mixed: Tensor, heads: int, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (batch, length, heads, head_dim), B and C (batch, length, d_state), as views of one array."""
    x, B, C = torch.split(mixed, [mixed.shape[-1] - 2 * d_state, d_state, d_state], dim=-1)
    return x.view(*x.shape[:-1], heads, -1), B, C


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def _chunked(values: Tensor) -> tuple[int, ...]:
    """Strides of (batch, heads, chunks, chunk) in the order of the kernels: batch, chunk, head, position."""
    return values.stride(0), values.stride(2), values.stride(1), values.stride(3)


def _one_group(values: Tensor) -> tuple[int, ...]:
    """Strides of B or C: batch, position, group, state."""
    return values.stride(0), values.stride(1), 0, values.stride(2)


def _products(B: Tensor, C: Tensor, cells: Tensor, chunk: int) -> Tensor:
    """C_i B_j for all pairs of a chunk, zero for those of different cells: float32 (batch, chunks, chunk, chunk)."""
    batch, length, d_state = B.shape
    chunks = _blocks(length, chunk)
    out = torch.empty(batch, chunks, chunk, chunk, dtype=torch.float32, device=B.device)
    name = "_bmm_chunk_fwd_kernel"
    launch(
        name, (_blocks(chunk, tile(name, "M")) * _blocks(chunk, tile(name, "N")), batch, chunks),
        C, B, out, cells, length, chunk, d_state, 1, *_one_group(C), *_one_group(B),
        out.stride(0), out.stride(1), 0, out.stride(2), out.stride(3), *cells.stride(), False, _DOT[B.dtype],
        HAS_SEQ_IDX=True,
    )  # fmt: skip
    return out


def scan_forward(
    mixed: Tensor, dt: Tensor, decay: Tensor, D: Tensor, cells: Tensor, d_state: int
) -> tuple[Tensor, Tensor]:
    """Scan packed rows from the left; no information passes from one cell to another.

    Args:
        mixed: (batch, length, heads * head_dim + 2 * d_state), x, B and C side by side.
        dt: float32 (batch, heads, chunks, chunk), step sizes.
        decay: float32, in the shape of dt: running sums of dt A in each chunk.
        D: (heads,), weight of the skip connection.
        cells: int32 (batch, length), another number for each cell of a row and for its unused tail, from 1.
        d_state: width of B and of C.

    Returns:
        y (batch, length, heads, head_dim) and the states that enter each chunk (batch, chunks, heads, head_dim,
        d_state), both in the type of `mixed`.
    """
    batch, heads, chunks, chunk = dt.shape
    x, B, C = parts_of(mixed, heads, d_state)
    length, width = mixed.shape[1], x.shape[-1]
    sizes = (chunk, width, d_state, batch, length, heads)
    made = torch.empty(batch, chunks, heads, width, d_state, dtype=torch.float32, device=mixed.device)
    name = "_chunk_state_fwd_kernel"
    launch(
        name, (_blocks(width, tile(name, "M")) * _blocks(d_state, tile(name, "N")), batch * chunks, heads),
        x, B, made, dt, decay, cells, width, d_state, chunk, batch, length, heads, *x.stride(), *_one_group(B),
        *made.stride(), *_chunked(dt), *_chunked(decay), *cells.stride(), HAS_SEQ_IDX=True,
    )  # fmt: skip
    states = torch.empty_like(made, dtype=mixed.dtype)
    name = "_state_passing_fwd_kernel"
    # The state after the last chunk, which nobody needs, replaces what the first one has made.
    launch(
        name, (_blocks(width * d_state, tile(name, "")), batch, heads),
        made, states, made, decay[..., -1], None, cells, width * d_state, chunks, length, chunk,
        *made.stride()[:3], 1, *states.stride()[:3], 1, made.stride(0), made.stride(2), 1, *_chunked(decay)[:3],
        0, 0, 0, *cells.stride(), HAS_INITSTATES=False, HAS_SEQ_IDX=True,
    )  # fmt: skip
    products = _products(B, C, cells, chunk)
    y = torch.empty(batch, length, heads, width, dtype=mixed.dtype, device=mixed.device)
    name = "_chunk_scan_fwd_kernel"
    launch(
        name, (_blocks(chunk, tile(name, "M")) * _blocks(width, tile(name, "N")), batch * chunks, heads),
        products, x, None, y, None, dt, decay, cells, C, states, D, *sizes,
        products.stride(0), products.stride(1), 0, products.stride(2), products.stride(3), *x.stride(), 0, 0, 0, 0,
        *y.stride(), *_chunked(dt), *_chunked(decay), *cells.stride(), *_one_group(C), *states.stride(), D.stride(0),
        True, True, False, HAS_Z=False, HAS_SEQ_IDX=True, BLOCK_SIZE_DSTATE=_power(d_state), IS_TRITON_22=True,
    )  # fmt: skip
    return y, states


def scan_backward(
    d_y: Tensor, mixed: Tensor, dt: Tensor, decay: Tensor, D: Tensor, cells: Tensor, states: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of `scan_forward`.

    Args:
        d_y: of y.
        mixed: as in `scan_forward`.
        dt: as in `scan_forward`.
        decay: as in `scan_forward`.
        D: as in `scan_forward`.
        cells: as in `scan_forward`.
        states: what `scan_forward` returned.

    Returns:
        The gradient by `mixed`, contiguous; and float32 parts of the others, for `steps_backward`: of dt ("dt": tiles
        first), of the decay ("within": tiles before the last dimension; "after" and "before": tiles first; "carried":
        (batch, heads, chunks, tiles)), and of D ("D": (tiles, batch, chunks, heads)).
    """
    batch, heads, chunks, chunk = dt.shape
    d_state = states.shape[-1]
    x, B, C = parts_of(mixed, heads, d_state)
    length, width = mixed.shape[1], x.shape[-1]
    d_mixed = torch.empty(mixed.shape, dtype=mixed.dtype, device=mixed.device)
    d_x, d_B, d_C = parts_of(d_mixed, heads, d_state)
    chunked = (*_chunked(dt), *_chunked(decay), *cells.stride())

    def made(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=mixed.device)

    products = _products(B, C, cells, chunk)
    of_products = (products.stride(0), products.stride(1), 0, products.stride(2), products.stride(3))
    d_entering = made(batch, chunks, heads, width, d_state)
    name = "_chunk_scan_bwd_dstates_kernel"
    launch(
        name, (_blocks(width, tile(name, "M")) * _blocks(d_state, tile(name, "N")), batch * chunks, heads),
        d_y, C, d_entering, decay, cells, width, d_state, chunk, batch, length, chunks, heads, *d_y.stride(),
        *_one_group(C), *d_entering.stride(), *_chunked(decay), *cells.stride(), HAS_SEQ_IDX=True,
    )  # fmt: skip
    d_states = torch.empty_like(d_entering, dtype=mixed.dtype)
    name = "_state_passing_bwd_kernel"
    carried = made(batch, heads, chunks, _blocks(width * d_state, tile(name, "")))
    launch(
        name, (carried.shape[-1], batch, heads),
        d_entering, states, decay[..., -1], None, cells, d_states, carried, None, None,
        width * d_state, chunks, length, chunk, *d_entering.stride()[:3], 1, *states.stride()[:3], 1,
        *_chunked(decay)[:3], 0, 0, 0, *cells.stride(), *d_states.stride()[:3], 1, *_chunked(carried)[:3], 0, 0, 0,
        CONVERT_STATES=False, HAS_DFINAL_STATES=False, HAS_DINITSTATES=False, HAS_SEQ_IDX=True,
    )  # fmt: skip
    name = "_chunk_scan_chunk_state_bwd_dx_kernel"
    tiles_m, tiles_n = _blocks(chunk, tile(name, "M")), _blocks(width, tile(name, "N"))
    d_dt, d_D = made(tiles_n, *dt.shape), made(tiles_m * tiles_n, batch, chunks, heads)
    launch(
        name, (tiles_m * tiles_n, batch * chunks, heads),
        x, products, d_y, dt, decay, cells, D, B, d_states, d_x, d_dt, d_D,
        chunk, width, d_state, batch, length, heads, *x.stride(), *of_products[:3], products.stride(3),
        products.stride(2), *d_y.stride(), *chunked, D.stride(0), *_one_group(B), *d_states.stride(), *d_x.stride(),
        *_chunked(d_dt[0]), d_dt.stride(0), *d_D.stride()[1:], tiles_n * d_D.stride(0), d_D.stride(0), True, False,
        HAS_SEQ_IDX=True, BLOCK_SIZE_DSTATE=_power(d_state), IS_TRITON_22=True, DETERMINISTIC_REDUCTION=True,
    )  # fmt: skip
    sums: dict[str, Tensor] = {}
    residuals: dict[str, Tensor] = {}
    for name, first, second, narrow, decays, key in (
        ("_chunk_state_bwd_db_kernel", x, d_states, B, (dt, decay), "after"),
        ("_chunk_scan_bwd_dc_kernel", d_y, states, C, (decay,), "before"),
    ):
        residual, tiles = made(batch, length, d_state), _blocks(d_state, tile(name, "N"))
        sums[key], residuals[key] = made(tiles, *dt.shape), residual
        strides: tuple[Any, ...] = tuple(s for values in decays for s in _chunked(values))
        launch(
            name, (_blocks(chunk, tile(name, "M")) * tiles, batch * chunks, 1),
            first, second, narrow, *decays, cells, residual, sums[key], chunk, d_state, width, batch, length, heads,
            heads, 1, *first.stride(), *second.stride(), *_one_group(narrow), *strides, *cells.stride(),
            residual.stride(0), residual.stride(1), 0, 0, 1, *_chunked(sums[key][0]), sums[key].stride(0),
            HAS_DDA_CS=True, HAS_SEQ_IDX=True, DETERMINISTIC_REDUCTION=True, BLOCK_SIZE_K=_power(width),
        )  # fmt: skip
    d_products = torch.empty_like(products)
    name = "_chunk_scan_bwd_dcb_kernel"
    launch(
        name, (_blocks(chunk, tile(name, "M")) * _blocks(chunk, tile(name, "N")), batch * chunks, 1),
        x, d_y, None, dt, decay, cells, d_products, None, chunk, width, batch, length, heads, heads, 1, *x.stride(),
        *d_y.stride(), 0, 0, 0, 0, 0, *chunked, *of_products[:2], 0, 0, *of_products[3:], 0, 0, 0, 0, 0,
        HAS_DDA_CS=False, HAS_SEQ_IDX=True, BLOCK_SIZE_K=_power(width),
    )  # fmt: skip
    name = "_bmm_chunk_bwd_kernel"
    for narrow, d_narrow, key, along in ((C, d_B, "after", (2, 3)), (B, d_C, "before", (3, 2))):
        residual = residuals[key]
        launch(
            name, (_blocks(chunk, tile(name, "M")) * _blocks(d_state, tile(name, "N")), batch, chunks),
            narrow, d_products, d_narrow, residual, length, chunk, d_state, 1, *_one_group(narrow), *of_products[:3],
            *(products.stride(d) for d in along), *_one_group(d_narrow), *_one_group(residual), _DOT[mixed.dtype], True,
        )  # fmt: skip
    name = "_chunk_scan_bwd_ddAcs_stable_kernel"
    within = made(batch, heads, chunks, _blocks(chunk, tile(name, "M")), chunk)
    launch(
        name, (within.shape[3], batch * chunks, heads),
        x, d_y, dt, decay, products, within, chunk, width, batch, length, heads, *x.stride(), *d_y.stride(),
        *_chunked(dt), *_chunked(decay), *of_products, within.stride(0), within.stride(2), within.stride(1),
        within.stride(3), within.stride(4), BLOCK_SIZE_K=_power(width),
    )  # fmt: skip
    return d_mixed, {"dt": d_dt, "within": within, **sums, "carried": carried, "D": d_D}

"""Attention within each cell of packed rows, by the best kernel that the machine offers."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

#: The kernels of `attend`.
VARLEN, SDPA = "varlen_attn", "sdpa"
#: What `varlen_attn` asks for: compute capability, types, widest head.
_CAPABILITY, _TYPES, _WIDEST_HEAD = (8, 0), (torch.bfloat16, torch.float16), 256


@dataclass(frozen=True)
class CellLayout:
    """Packed rows laid out for attention: the cells, those of one length side by side, and behind them the tails.

    Made once a forward pass, read by every layer. All positions of the batch have a place, so that shapes do not depend
    on how full its rows are.

    Attributes:
        order: int64 (batch * length,), the flat position that comes to each place; None: all are in place already.
        back: int64 (batch * length,), the place of each flat position; None likewise.
        rank: int64 (batch * length,), by place: 0 for the first token of a cell or a tail, 1 for the next.
        bounds: int32 (n_cells + 1,), the places where cells begin, and where the last one ends.
        groups: for each length of cell, ascending: how many cells, and the length.
        n_tokens: tokens of all cells; the places from there on are tails.
    """

    order: Tensor | None
    back: Tensor | None
    rank: Tensor
    bounds: Tensor
    groups: tuple[tuple[int, int], ...]
    n_tokens: int


def lay_out(segment: Tensor) -> CellLayout:
    """Find the cells of packed rows.

    Args:
        segment: integer (batch, length), 0 on the unused tail; each cell is a contiguous run of one number.
    """
    n_places = segment.numel()
    change = torch.ones_like(segment, dtype=torch.bool)
    change[:, 1:] = segment[:, 1:] != segment[:, :-1]
    begins = change.flatten().nonzero()[:, 0]
    # On a GPU the pass waits here, once; what the CPU does from here on is little.
    begin, number = torch.stack([begins, segment.flatten()[begins]]).cpu()
    length = begin.diff(append=torch.tensor([n_places]))
    # A stable order leaves rows of one whole cell each as they are.
    arrangement = torch.where(number > 0, length, n_places + 1).argsort(stable=True)
    in_place = bool((arrangement.diff() > 0).all())
    begin, length = begin[arrangement], length[arrangement]
    ends = length.cumsum(0)
    rank = torch.arange(n_places) - (ends - length).repeat_interleave(length)
    order = begin.repeat_interleave(length) + rank

    n_cells = int((number > 0).sum())
    lengths, counts = length[:n_cells].unique_consecutive(return_counts=True)
    device = segment.device
    return CellLayout(
        order=None if in_place else order.to(device),
        back=None if in_place else order.argsort().to(device),
        rank=rank.to(device),
        bounds=F.pad(ends[:n_cells], (1, 0)).to(torch.int32).to(device),
        groups=tuple(zip(counts.tolist(), lengths.tolist(), strict=True)),
        n_tokens=int(length[:n_cells].sum()),
    )


def attention_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """The kernel that `attend` runs, `VARLEN` or `SDPA`, and why, in a line for people.

    Args:
        device: where the model is.
        dtype: type of queries, keys and values; under autocast the narrow one.
        head_dim: channels of a head.
    """
    if device.type != "cuda":
        lacking = f"a GPU, this is {device.type}"
    elif (capability := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        lacking = f"compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    elif dtype not in _TYPES:
        lacking = f"bf16 or fp16, this is {str(dtype).removeprefix('torch.')}"
    elif head_dim % 8 or head_dim > _WIDEST_HEAD:
        lacking = f"heads of 8, 16, ... {_WIDEST_HEAD} channels, these have {head_dim}"
    else:
        return VARLEN, "Flash attention over the bounds of all cells in one call"
    return SDPA, f"one call without a mask for each length of cell; {VARLEN} needs {lacking}"


# The cells are others in every batch: compiled, each batch would be a program of its own.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(q: Tensor, k: Tensor, v: Tensor, cells: CellLayout) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v within each cell (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        q, k, v: (batch * length, n_heads, head_dim), by place.
        cells: the layout.

    Returns:
        (batch * length, n_heads * head_dim), zeros on the tails.
    """
    n_places, _, head_dim = q.shape
    n_tails = n_places - cells.n_tokens
    if n_tails:
        q, k, v = q[: cells.n_tokens], k[: cells.n_tokens], v[: cells.n_tokens]
    if not cells.groups:
        out = v.flatten(1)
    elif attention_kernel(q.device, q.dtype, head_dim)[0] == VARLEN:
        longest = cells.groups[-1][1]
        joined = varlen_attn(q, k, v, cells.bounds, cells.bounds, longest, longest)
        assert isinstance(joined, Tensor)
        out = joined.flatten(1)
    else:
        out = _by_length(q, k, v, cells.groups)
    return F.pad(out, (0, 0, 0, n_tails)) if n_tails else out


def _by_length(q: Tensor, k: Tensor, v: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
    """Attention of cells of one length at a time: no mask, which would rule out SDPA's fast kernels."""
    sizes = [n * length for n, length in groups]
    parts = []
    # Split once: the gradient is one copy, where slices would add up an array of zeros each.
    for (n, length), *group in zip(groups, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
        heads_first = (part.unflatten(0, (n, length)).transpose(1, 2) for part in group)
        parts.append(F.scaled_dot_product_attention(*heads_first).transpose(1, 2).reshape(n * length, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)

"""Attention within each cell of packed rows, by the fastest kernel that the device supports."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

#: The kernels of `attend`.
VARLEN, SDPA = "varlen_attn", "sdpa"
#: Requirements of `varlen_attn`: compute capability, types, widest head.
_CAPABILITY, _TYPES, _WIDEST_HEAD = (8, 0), (torch.bfloat16, torch.float16), 256


@dataclass(frozen=True)
class CellLayout:
    """The layout of packed rows for attention: cells sorted by length, then the unused tails of the rows.

    Made once for each forward pass, and read by every layer. The layout contains all positions of the batch, so that
    shapes do not depend on how full its rows are. An index into the layout is called a slot.

    Attributes:
        order: int64 (batch * length,), the flat position that goes to each slot; None if the order is unchanged.
        back: int64 (batch * length,), the slot of each flat position; None if the order is unchanged.
        rank: int64 (batch * length,), for each slot: 0 for the first token of a cell or a tail, 1 for the next.
        bounds: int32 (n_cells + 1,), the slots where cells begin, and where the last one ends.
        groups: for each length of cell, ascending: the number of cells and the length.
        n_tokens: tokens of all cells; the slots from there on are tails.
    """

    order: Tensor | None
    back: Tensor | None
    rank: Tensor
    bounds: Tensor
    groups: tuple[tuple[int, int], ...]
    n_tokens: int


def cell_layout(segment: Tensor) -> CellLayout:
    """Find the cells of packed rows and sort them by length.

    Args:
        segment: integer (batch, length), 0 on the unused tail; each cell is a contiguous run of one number.
    """
    n_slots = segment.numel()
    change = torch.ones_like(segment, dtype=torch.bool)
    change[:, 1:] = segment[:, 1:] != segment[:, :-1]
    begins = change.flatten().nonzero()[:, 0]
    # On a GPU the forward pass waits here, once. The CPU work from here on is small.
    begin, number = torch.stack([begins, segment.flatten()[begins]]).cpu()
    length = begin.diff(append=torch.tensor([n_slots]))
    # A stable sort leaves the batch as it is where each row is one whole cell.
    arrangement = torch.where(number > 0, length, n_slots + 1).argsort(stable=True)
    in_place = bool((arrangement.diff() > 0).all())
    begin, length = begin[arrangement], length[arrangement]
    ends = length.cumsum(0)
    rank = torch.arange(n_slots) - (ends - length).repeat_interleave(length)
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
    """The kernel that `attend` runs, `VARLEN` or `SDPA`, and the reason, in one line for logs.

    Args:
        device: where the model is.
        dtype: type of queries, keys and values; under autocast the narrow one.
        head_dim: channels of a head.
    """
    if device.type != "cuda":
        missing = f"a GPU, this is {device.type}"
    elif (capability := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        missing = f"compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"
    elif dtype not in _TYPES:
        missing = f"bf16 or fp16, this is {str(dtype).removeprefix('torch.')}"
    elif head_dim % 8 or head_dim > _WIDEST_HEAD:
        missing = f"heads of 8, 16, ... {_WIDEST_HEAD} channels, these have {head_dim}"
    else:
        return VARLEN, "Flash attention over the bounds of all cells in one call"
    return SDPA, f"one call without a mask for each length of cell; {VARLEN} needs {missing}"


# The lengths of cells differ from batch to batch: if this were compiled, it would be compiled again for each batch.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend(q: Tensor, k: Tensor, v: Tensor, cells: CellLayout) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v within each cell (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        q, k, v: (batch * length, n_heads, head_dim), in the order of the layout.
        cells: the layout.

    Returns:
        (batch * length, n_heads * head_dim), zeros on the tails.
    """
    n_slots, _, head_dim = q.shape
    n_tails = n_slots - cells.n_tokens
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
    """Attention of the cells of one length at a time: this needs no mask, which would rule out SDPA's fast kernels."""
    sizes = [n * length for n, length in groups]
    parts = []
    # One split: its gradient is one copy, whereas each slice would add a whole array of zeros.
    for (n, length), *group in zip(groups, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
        heads_first = (part.unflatten(0, (n, length)).transpose(1, 2) for part in group)
        parts.append(F.scaled_dot_product_attention(*heads_first).transpose(1, 2).reshape(n * length, -1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)

"""Pool the final states of a cell's tokens into one vector.

Each function maps states (batch, length, d_model) and member, bool (batch, n, length), which says what tokens belong to
each of n cells of a row, to (batch, n, d_model). With states h_r, the token of the best-ranked gene first, r = 1..T:

    mean  (h_1 + ... + h_T) / T
    max   the largest value of each channel over h_1, ..., h_T
    rank  (w_1 h_1 + ... + w_T h_T) / (w_1 + ... + w_T), where w_r = 1 / log2(1 + r)

The vectors of cells without tokens have no meaning.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def mean(states: Tensor, member: Tensor) -> Tensor:
    """Average over the tokens."""
    # Clamped, because the gradient of 0 / 0 would be NaN for the whole row.
    return member.to(states.dtype) @ states / member.sum(-1, keepdim=True).clamp(min=1)


def maximum(states: Tensor, member: Tensor) -> Tensor:
    """The largest value of each channel."""
    # One cell of every row at a time: for all at once, memory would grow with the number of cells in a row.
    cells = [states.masked_fill(~tokens[..., None], -torch.inf).amax(1) for tokens in member.unbind(1)]
    return torch.stack(cells, 1) if cells else states.new_empty(len(states), 0, states.shape[-1])


def by_rank(states: Tensor, member: Tensor) -> Tensor:
    """Average with weights 1 / log2(1 + rank)."""
    rank = member.cumsum(-1).clamp(min=1)
    weights = member / torch.log2(1 + rank.to(states.dtype))
    return weights @ states / weights.sum(-1, keepdim=True).clamp(min=1)  # the first token has weight 1


#: The ways of pooling by name.
POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean, "max": maximum, "rank": by_rank}

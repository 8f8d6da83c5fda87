"""Depthwise convolution over the tokens of a cell, causal and mirrored, followed by SiLU."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.model.loops import cpu
from gm_train.model.segments import Segments


class DepthwiseConv(nn.Module):
    """Filter each channel on its own, within a cell: y_t = SiLU(bias + sum over k of w_k x_(t-k)).

    The mirrored form reads x_(t+k) instead. Parameters have the layout of `nn.Conv1d(channels, channels, taps,
    groups=channels)`, whose last tap is k = 0. With channels last, sums of shifted products are several times faster
    than a grouped convolution, and they can stop at the boundaries between cells.
    """

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw uniformly within ± 1 / sqrt(taps), PyTorch's default for a depthwise convolution."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, segments: Segments, bidirectional: bool) -> tuple[Tensor, ...]:
        """Filter the tokens of each cell; the tokens of other cells count as zeros.

        Args:
            x: (batch, length, channels).
            segments: boundaries of the same rows.
            bidirectional: whether to compute the mirrored form as well.

        Returns:
            The causal result and, if bidirectional, the mirrored one, each in the shape and type of x.
        """
        if cpu.on_cpu(x) and x.dtype == self.weight.dtype == torch.float32:
            from gm_train.model.loops.conv_loops import conv_silu_loops  # imported late: numba takes a second to import

            weight = self.weight.squeeze(1).T.flip(0)
            return tuple(conv_silu_loops(x, segments.reach, weight, self.bias, bidirectional))
        same = [mask.to(x.dtype) for mask in segments.same]  # fewer than taps - 1 where rows are that short
        taps = self.weight.squeeze(1).T.flip(0)[: len(same) + 1].to(x.dtype)
        bias = self.bias.to(x.dtype)
        filtered: tuple[Tensor, ...] = _Shifted.apply(x, taps, bias, bidirectional, *same)  # type: ignore[no-untyped-call]
        return tuple(F.silu(y) for y in filtered)


class _Shifted(torch.autograd.Function):
    """Causal and mirrored sums of shifted products.

    The gradient is written by hand because autograd copies and fills whole arrays for the slices of every tap. Masked
    taps serve both directions, and the gradient of each direction is the other one's filter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, bidirectional: bool, *same: Tensor) -> Any:
        causal = torch.addcmul(bias, x, taps[0])
        mirrored = causal.clone() if bidirectional else None
        for k, mask in enumerate(same, start=1):
            tap = taps[k] * mask
            causal[:, k:].addcmul_(x[:, :-k], tap)
            if mirrored is not None:
                mirrored[:, :-k].addcmul_(x[:, k:], tap)
        ctx.save_for_backward(x, taps, *same)
        return (causal,) if mirrored is None else (causal, mirrored)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, *same = ctx.saved_tensors
        causal, mirrored = grads if len(grads) == 2 else (grads[0], None)
        total = causal if mirrored is None else causal + mirrored
        d_bias = total.sum((0, 1))
        d_taps = [(total * x).sum((0, 1))]
        d_x = total * taps[0]
        for k, mask in enumerate(same, start=1):
            tap = taps[k] * mask
            d_x[:, :-k].addcmul_(causal[:, k:], tap)
            product = causal[:, k:] * x[:, :-k]
            if mirrored is not None:
                d_x[:, k:].addcmul_(mirrored[:, :-k], tap)
                product.addcmul_(mirrored[:, :-k], x[:, k:])
            d_taps.append(mask.flatten() @ product.flatten(0, 1))
        return d_x, torch.stack(d_taps), d_bias, None, *(None for _ in same)

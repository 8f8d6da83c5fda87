"""Root-mean-square norms (Zhang and Sennrich 2019, arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * weight."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.model.loops import cpu


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension, computed in the type of the weight."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width) to the same shape and type."""
        wide = x.to(self.weight.dtype)
        scale = (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (wide * scale * self.weight).to(x.dtype)


class GatedRMSNorm(RMSNorm):
    """RMSNorm of y * SiLU(z), as at the end of Mamba-2's mixer, for each direction's y."""

    def forward(self, z: Tensor, *ys: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Gate and normalise each y.

        Args:
            z: (..., width), the gate before its SiLU.
            ys: (..., width) each.

        Returns:
            For each y, the result in its shape and type.
        """
        if cpu.on_cpu(z) and all(value.dtype == torch.float32 for value in (z, self.weight, *ys)):
            # Imported late: numba takes a second to import.
            from gm_train.model.loops.norm_loops import gated_norm_loops

            return tuple(gated_norm_loops(z, list(ys), self.weight, self.eps)[:-1])
        gate = F.silu(z)
        return tuple(_GatedNorm.apply(y, gate, self.weight, self.eps) for y in ys)  # type: ignore[no-untyped-call]


class _GatedNorm(torch.autograd.Function):
    """The gated norm of `GatedRMSNorm`.

    The gradient is written by hand because these are the widest arrays of the model, and autograd makes twice as many
    passes over them. Sums over a token's channels are products, which autocast would compute in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        gated = y.to(weight.dtype) * gate
        with torch.autocast(y.device.type, enabled=False):
            mean_square = torch.linalg.vecdot(gated, gated)[..., None] / gated.shape[-1]
        scale = (mean_square + eps).rsqrt()
        normed = gated.mul_(scale)
        ctx.save_for_backward(y, gate, weight, scale, normed.to(y.dtype))
        return (normed * weight).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, gate, weight, scale, normed = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        product = grad * normed
        d_weight = product.flatten(0, -2).sum(0)
        # Autograd runs this without autocast, but a compiled backward pass keeps that of the forward pass.
        with torch.autocast(product.device.type, enabled=False):
            mean = (product @ weight)[..., None] / weight.shape[0]
        d_gated = (grad * weight).addcmul_(normed, mean, value=-1).mul_(scale)
        return (d_gated * gate).to(y.dtype), (d_gated * y).to(gate.dtype), d_weight, None

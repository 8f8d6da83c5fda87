"""Join the two directions of a layer (GeneMamba, arXiv 2504.16956): the gate and its variants.

Each maps the layer's input x and the mixer's outputs f (forward) and b (backward), all (batch, length, d_model), to the
layer's output of that shape. `head_gate` takes the one output y of a mixer that has joined its directions.
With X_f = x + f and X_b = x + b:

    gate       g X_f + (1 - g) X_b, where g = sigmoid(W [X_f ; X_b] + c)
    concat     W [X_f ; X_b] + c
    mean       (X_f + X_b) / 2
    sum        X_f + X_b, which doubles the residual stream at every layer
    head_gate  x + y
"""

from typing import Any

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """g X_f + (1 - g) X_b, where g = sigmoid(W [X_f ; X_b] + c); as published."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = _GateLinear(2 * d_model, d_model)

    def forward(self, x: Tensor, f: Tensor, b: Tensor | None = None) -> Tensor:
        """Join the directions, as above; by kernels if f is one array of both, (2, batch, length, d_model)."""
        joined: Tensor = self.proj(x, f, b)
        return joined


class _GateLinear(nn.Linear):
    """The weights W and c of the gate, and what is computed with them.

    Their own module computes with them, because sharded strategies gather a module's weights around its call.
    """

    def forward(self, x: Tensor, f: Tensor, b: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Join the directions, as in `Gate.forward`."""
        if b is None:
            from gm_train.model.kernels.gate_kernels import gate  # imported late: Triton is not installed everywhere

            out: Tensor = gate(x, f, self.weight.to(f.dtype), self.bias)[0]
            return out
        device = x.device.type
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if torch.is_autocast_enabled(device):
            narrow = torch.get_autocast_dtype(device)
            weight, bias, f, b = weight.to(narrow), bias.to(narrow), f.to(narrow), b.to(narrow)
        joined: Tensor = _Gated.apply(x, f, b, weight, bias)  # type: ignore[no-untyped-call]
        return joined


class _Gated(torch.autograd.Function):
    """x + b + g (f - b), where g = sigmoid(W1 (x + f) + W2 (x + b) + c) and W = [W1 W2].

    Written by hand because autograd concatenates X_f and X_b, adds them in the wider type of x, and sums the gradient
    of x from four parts. Products with W1 + W2, W1 and W2 would need neither sum, but half as many operations more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, b: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        first, second = weight.chunk(2, dim=1)
        x_f, x_b = (torch.add(x, y, out=torch.empty_like(y)).flatten(0, -2) for y in (f, b))
        with torch.autocast(x.device.type, enabled=False):
            gate = torch.addmm(bias, x_f, first.T).addmm_(x_b, second.T).sigmoid_().view_as(f)
        ctx.save_for_backward(f, b, weight, x_f, x_b, gate)
        return x + torch.lerp(b, f, gate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        f, b, weight, x_f, x_b, gate = ctx.saved_tensors
        first, second = weight.chunk(2, dim=1)
        grad = grads[0].to(f.dtype)
        d_pre = torch.ops.aten.sigmoid_backward((f - b).mul_(grad), gate).flatten(0, -2)
        with torch.autocast(f.device.type, enabled=False):
            d_f, d_b = (d_pre @ part for part in (first, second))
            d_weight = torch.cat([d_pre.T @ x_f, d_pre.T @ x_b], dim=1)
        d_f, d_b = d_f.view_as(f), d_b.view_as(b)
        d_x = (grads[0] + d_f).add_(d_b)
        d_f.addcmul_(grad, gate)
        d_b.add_(grad).addcmul_(grad, gate, value=-1)
        return d_x, d_f, d_b, d_weight, d_pre.sum(0)


class Concat(nn.Module):
    """W [X_f ; X_b] + c."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * d_model, d_model)

    def forward(self, x: Tensor, f: Tensor, b: Tensor) -> Tensor:
        """Join the directions, as above."""
        joined: Tensor = self.proj(torch.cat([x + f, x + b], dim=-1))
        return joined


class Mean(nn.Module):
    """(X_f + X_b) / 2."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, f: Tensor, b: Tensor) -> Tensor:
        """Join the directions, as above."""
        return x + (f + b) / 2


class Sum(nn.Module):
    """X_f + X_b."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, f: Tensor, b: Tensor) -> Tensor:
        """Join the directions, as above."""
        return 2 * x + f + b


class HeadGate(nn.Module):
    """x + y: `Mamba2Mixer` has already joined the directions, since its gate acts before the output projection."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the residual connection."""
        return x + y

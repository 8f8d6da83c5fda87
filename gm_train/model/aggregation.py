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

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """g X_f + (1 - g) X_b, where g = sigmoid(W [X_f ; X_b] + c); as published."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * d_model, d_model)

    def forward(self, x: Tensor, f: Tensor, b: Tensor) -> Tensor:
        """Join the directions, as above."""
        gate = torch.sigmoid(self.proj(torch.cat([x + f, x + b], dim=-1)))
        return x + torch.lerp(b, f, gate)


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

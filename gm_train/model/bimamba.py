"""Layers of the bidirectional and the unidirectional stack."""

import torch
from torch import Tensor, nn

from gm_train.config import ModelConfig
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.norm import RMSNorm
from gm_train.model.segments import Segments, make_segments

#: How the outputs of both directions are joined; `head_gate` does so within the mixer.
AGGREGATIONS = ("gate", "mean", "sum", "concat")


class Aggregation(nn.Module):
    """Joins the two directions of a layer (GeneMamba, arXiv 2504.16956).

    With X_f = x + f and X_b = x + b:

        gate     g X_f + (1 - g) X_b, where g = sigmoid(W [X_f ; X_b] + c)
        concat   W [X_f ; X_b] + c
        mean     (X_f + X_b) / 2
        sum      X_f + X_b, which doubles the residual stream at every layer

    Raises:
        ValueError: an unknown aggregation.
    """

    def __init__(self, aggregation: str, d_model: int) -> None:
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"model.aggregation={aggregation!r} is not one of {', '.join(AGGREGATIONS)}")
        self.aggregation = aggregation
        self.proj = nn.Linear(2 * d_model, d_model) if aggregation in ("gate", "concat") else None

    def forward(self, x: Tensor, f: Tensor, b: Tensor) -> Tensor:
        """Join input and both mixer outputs, each (batch, length, d_model), to the layer's output of that shape."""
        if self.aggregation == "mean":
            return x + (f + b) / 2
        if self.aggregation == "sum":
            return 2 * x + f + b
        assert self.proj is not None
        joined: Tensor = self.proj(torch.cat([x + f, x + b], dim=-1))
        if self.aggregation == "concat":
            return joined
        return x + torch.lerp(b, f, torch.sigmoid(joined))


class Layer(nn.Module):
    """A Mamba-2 mixer with its residual connection, in both directions or in the forward one alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bidirectional = config.arch == "bimamba"
        self.norm = RMSNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        self.mixer = Mamba2Mixer(config)

    def forward(self, x: Tensor, segments: Segments, aggregation: Aggregation | None) -> Tensor:
        """Map (batch, length, d_model) to the same shape; without an aggregation the mixer has one output."""
        outputs = self.mixer(self.norm(x), segments, self.bidirectional)
        joined: Tensor = x + outputs[0] if aggregation is None else aggregation(x, *outputs)
        return joined


class Stack(nn.Module):
    """The model's layers, with one aggregation for all of them, as published, or one for each.

    The shared aggregation belongs to the stack and not to its layers, so that each parameter has one owner.

    Raises:
        ValueError: an unknown arch, norm or aggregation.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.arch not in ("bimamba", "mamba"):
            raise ValueError(f"model.arch={config.arch!r} is not one of bimamba, mamba, transformer")
        if config.norm not in ("none", "pre"):
            raise ValueError(f"model.norm={config.norm!r} is not one of none, pre")
        self.chunk, self.taps = config.chunk, config.d_conv
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        joins = config.arch == "bimamba" and config.aggregation != "head_gate"
        n_aggregations = 0 if not joins else config.n_layers if config.gate_per_layer else 1
        self.aggregations = nn.ModuleList(
            Aggregation(config.aggregation, config.d_model) for _ in range(n_aggregations)
        )

    def forward(self, x: Tensor, segment: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same shape; `segment` as in `GeneMamba.forward`."""
        segments = make_segments(segment, self.chunk, self.taps, x.dtype)
        n = len(self.aggregations)
        for i, layer in enumerate(self.layers):
            x = layer(x, segments, self.aggregations[i % n] if n else None)
        return x

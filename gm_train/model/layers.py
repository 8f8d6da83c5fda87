"""Layers of the bidirectional and the unidirectional stack."""

from typing import Any

import torch
from torch import Tensor, nn

from gm_train.config.parts import load_part
from gm_train.config.schema import ModelConfig
from gm_train.model.aggregation import Gate
from gm_train.model.layer_stack import LayerStack
from gm_train.model.norm import RMSNorm
from gm_train.model.segments import Segments, make_segments


class MambaLayer(nn.Module):
    """A Mamba-2 mixer with its residual connection, in both directions or in the forward one only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bidirectional = config.arch == "bimamba"
        self.norm = RMSNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        self.mixer: nn.Module = load_part("model.mixer", config.mixer)(config)
        self.kernels_on: tuple[str, ...] = getattr(self.mixer, "package_devices", ())

    def forward(self, x: Tensor, segments: Segments, aggregation: nn.Module | None) -> Tensor:
        """Compute one layer.

        Args:
            x: (batch, length, d_model).
            segments: boundaries of the cells in the rows.
            aggregation: joins the directions; None in the unidirectional stack, whose mixer has one output.

        Returns:
            (batch, length, d_model).
        """
        device = x.device.type
        if isinstance(self.norm, nn.Identity) and device in self.kernels_on and torch.is_autocast_enabled(device):
            x, u = _Narrowed.apply(x, torch.get_autocast_dtype(device))  # type: ignore[no-untyped-call]
        else:
            u = self.norm(x)
        outputs = self.mixer(u, segments, self.bidirectional)
        if isinstance(outputs, Tensor) and isinstance(aggregation, Gate):
            outputs = (outputs,)
        joined: Tensor = x + outputs[0] if aggregation is None else aggregation(x, *outputs)
        return joined


class _Narrowed(torch.autograd.Function):
    """x, and a copy of it in autocast's type for the mixer.

    Its gradient adds the mixer's to that of the residual connection in one pass; autograd would widen it first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        residual, mixer = grads
        return residual + mixer, None


class MambaStack(LayerStack):
    """The model's layers, with one aggregation for all of them, as published, or one for each.

    The aggregations belong to the stack and not to its layers, so that each parameter has one owner.

    Raises:
        ValueError: arch, norm or aggregation is unknown.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.norm not in ("none", "pre"):
            raise ValueError(f"model.norm={config.norm!r} is not one of none, pre")
        self.chunk, self.taps = config.chunk, config.d_conv
        self.layers = nn.ModuleList(MambaLayer(config) for _ in range(config.n_layers))
        n_aggregations = 0 if config.arch == "mamba" else config.n_layers if config.gate_per_layer else 1
        aggregation = load_part("model.aggregation", config.aggregation)
        self.aggregations = nn.ModuleList(aggregation(config.d_model) for _ in range(n_aggregations))

    def forward(self, x: Tensor, segment: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same shape; `segment` as in `GeneMamba.forward`."""
        segments = make_segments(segment, self.chunk, self.taps, x.dtype)
        n = len(self.aggregations)
        for i, layer in enumerate(self.layers):
            x = layer(x, segments, self.aggregations[i % n] if n else None)
        return x

"""What every architecture has, so that it can be compiled, checkpointed and sharded layer by layer."""

from torch import nn


class LayerStack(nn.Module):
    """The layers of a model; maps states (batch, length, d_model) and segments (batch, length) to states.

    Attributes:
        layers: compiled, checkpointed and sharded one by one.
        aggregations: modules that all layers share, or one for each layer; empty where layers need none.
    """

    layers: nn.ModuleList
    aggregations: nn.ModuleList

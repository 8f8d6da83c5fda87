"""The baseline: a bidirectional transformer over the ranked genes of cells."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.attention import CellLayout, attend, cell_layout
from gm_train.model.layer_stack import LayerStack
from gm_train.model.norm import RMSNorm

#: Longest wavelength of the positions, in ranks, divided by 2 pi (Vaswani et al. 2017, arXiv 1706.03762).
LONGEST_WAVE = 10_000


def wave_angles(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Angles of sinusoidal positions: rank / 10,000^(2 i / width), for rank 0 … length - 1 and i < width / 2.

    Args:
        length: number of ranks.
        width: number of channels, even.
        dtype: type of the result.
        device: where the result is computed.

    Returns:
        (length, width / 2), in radians.
    """
    exponent = torch.arange(0, width, 2, dtype=dtype, device=device) / width
    return torch.arange(length, dtype=dtype, device=device)[:, None] * LONGEST_WAVE**-exponent


class Projection(nn.Module):
    """W x, with W drawn from a normal distribution of variance 1 / n_in, which keeps the scale of x.

    The last projection of a residual branch is drawn smaller by sqrt(branches), so that the residual stream of a deep
    stack initially has the variance of a shallow one (GPT-2, Radford et al. 2019).

    Args:
        n_in: inputs.
        n_out: outputs.
        branches: residual branches of the stack, for the last projection of a branch.
    """

    def __init__(self, n_in: int, n_out: int, branches: int = 1) -> None:
        super().__init__()
        self.std = 1 / math.sqrt(n_in * branches)
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight, as above."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        return F.linear(x, self.weight)


class Attention(nn.Module):
    """Multi-head attention of each token to all tokens of its cell, with rotary positions.

    Each pair of channels of queries and keys is rotated by the angle of its rank, so that products depend on the
    distance between ranks (RoPE, Su et al. 2021, arXiv 2104.09864).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv_proj = Projection(config.d_model, 3 * config.d_model)
        self.out_proj = Projection(config.d_model, config.d_model, branches=2 * config.n_layers)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cells: CellLayout) -> Tensor:
        """Map (batch * length, d_model) to the same shape; the arguments are those of `TransformerLayer.forward`."""
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.n_heads, -1))
        qk, v = qkv[:, :2], qkv[:, 2]
        cos, sin = rotation
        a, b = qk.chunk(2, dim=-1)
        rotated = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(v.dtype)
        out: Tensor = self.out_proj(attend(*rotated.unbind(1), v, cells))
        return out


class FeedForward(nn.Module):
    """W_down GELU(W_up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = Projection(config.d_model, config.d_ff)
        self.down_proj = Projection(config.d_ff, config.d_model, branches=2 * config.n_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_model) to the same shape."""
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x)))
        return out


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a norm before it and a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.d_model)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cells: CellLayout) -> Tensor:
        """Compute one layer.

        Args:
            x: (batch * length, d_model), in the order of the layout.
            rotation: cosine and sine of the rotary angles, (batch * length, 1, 1, head_dim / 2) each.
            cells: the layout.

        Returns:
            (batch * length, d_model).
        """
        x = x + self.attention(self.attention_norm(x), rotation, cells)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class TransformerStack(LayerStack):
    """A pre-norm encoder without dropout and without biases.

    Positions have no parameters and no maximum length, and start at 0 in every cell. A position is the rank of a gene,
    so its sinusoids are added to the embeddings, once. The neighbours of a gene are informative as well, and rotary
    positions give attention the distance between ranks: without them the baseline learns more slowly.

    Everything but attention acts on each token alone, so the tokens of a batch are put into the order that attention
    needs once for all layers.

    Raises:
        ValueError: d_model / n_heads is not an even integer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.d_model % config.n_heads or config.d_model // config.n_heads % 2:
            raise ValueError(
                f"model.n_heads={config.n_heads}: model.d_model={config.d_model} is not an even multiple of it"
            )
        self.head_dim = config.d_model // config.n_heads
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.n_layers))
        self.aggregations = nn.ModuleList()  # empty: only Bi-Mamba has directions to join

    def forward(self, x: Tensor, segment: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same shape; `segment` as in `GeneMamba.forward`."""
        cells = cell_layout(segment)
        length, d_model = x.shape[1:]
        dtype = torch.promote_types(x.dtype, torch.float32)
        added = wave_angles(length, d_model, dtype, x.device)
        added = torch.cat([added.sin(), added.cos()], dim=-1).to(x.dtype)
        rotary = wave_angles(length, self.head_dim, dtype, x.device)[cells.rank, None, None]
        rotation = rotary.cos(), rotary.sin()

        tokens = x.flatten(0, 1)
        if cells.order is not None:
            tokens = tokens.index_select(0, cells.order)
        tokens = tokens + added[cells.rank]
        for layer in self.layers:
            tokens = layer(tokens, rotation, cells)
        if cells.back is not None:
            tokens = tokens.index_select(0, cells.back)
        return tokens.view_as(x)

"""The baseline: a bidirectional transformer over the ranked genes of cells."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.attention import CellLayout, attend, lay_out
from gm_train.model.norm import RMSNorm

#: Ranks in the longest wave of the positions, over 2 pi (Vaswani et al. 2017, arXiv 1706.03762).
LONGEST_WAVE = 10_000


def wave_angles(length: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """rank / 10,000^(2 i / width) in radians, for rank 0 … length - 1 and i < width / 2: (length, width / 2)."""
    exponent = torch.arange(0, width, 2, dtype=dtype, device=device) / width
    return torch.arange(length, dtype=dtype, device=device)[:, None] * LONGEST_WAVE**-exponent


class Projection(nn.Module):
    """W x, with W drawn from a normal distribution of variance 1 / inputs, which keeps the size of x.

    A projection that ends a branch is drawn smaller by sqrt(branches), so that the residual stream of a deep stack
    begins as wide as that of a shallow one (GPT-2, Radford et al. 2019).
    """

    def __init__(self, n_in: int, n_out: int, branches: int = 1) -> None:
        super().__init__()
        self.std = 1 / math.sqrt(n_in * branches)
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal, as above."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n_in) to (..., n_out)."""
        return F.linear(x, self.weight)


class Attention(nn.Module):
    """Multi-head attention of each token to all tokens of its cell, with rotary positions.

    Queries and keys are turned by the angles of their ranks, pair of channels by pair of channels, so that their
    products depend on the distance of the ranks (RoPE, Su et al. 2021, arXiv 2104.09864).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv_proj = Projection(config.d_model, 3 * config.d_model)
        self.out_proj = Projection(config.d_model, config.d_model, branches=2 * config.n_layers)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cells: CellLayout) -> Tensor:
        """Map (batch * length, d_model) to the same shape; the arguments are those of `Layer.forward`."""
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.n_heads, -1))
        qk, v = qkv[:, :2], qkv[:, 2]
        cos, sin = rotation
        a, b = qk.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(v.dtype)
        out: Tensor = self.out_proj(attend(*turned.unbind(1), v, cells))
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
    """Attention and feed-forward, each behind a norm and with a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.d_model)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cells: CellLayout) -> Tensor:
        """One layer.

        Args:
            x: (batch * length, d_model), by place.
            rotation: cosine and sine of the rotary angles, (batch * length, 1, 1, head_dim / 2) each.
            cells: where the cells are.

        Returns:
            (batch * length, d_model).
        """
        x = x + self.attention(self.attention_norm(x), rotation, cells)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class TransformerStack(nn.Module):
    """A pre-norm encoder without dropout and without biases.

    Positions have no parameters and no largest length, and begin anew with every cell. What a position means is the
    rank of a gene, so its sinusoids are added to the embeddings, once. What stands beside a gene tells much of it as
    well, and rotary positions give attention the distance between ranks: without them the baseline learns more slowly.

    All but attention acts on each token alone. The tokens of a batch are therefore put into the order that attention
    wants once for all layers.

    Raises:
        ValueError: d_model / n_heads is not a whole, even number.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.d_model % config.n_heads or config.d_model // config.n_heads % 2:
            raise ValueError(
                f"model.n_heads={config.n_heads}: model.d_model={config.d_model} is not an even multiple of it"
            )
        self.head_dim = config.d_model // config.n_heads
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.n_layers))
        self.aggregations = nn.ModuleList()  # of Bi-Mamba's directions

    def forward(self, x: Tensor, segment: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same shape; `segment` as in `GeneMamba.forward`."""
        cells = lay_out(segment)
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

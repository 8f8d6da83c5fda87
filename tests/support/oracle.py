"""A slow reference implementation of GeneMamba: one cell at a time, one token at a time, straight from the equations.

Mamba-2's recurrence (arXiv 2405.21060) is a loop over tokens, the convolution loops over tokens and taps, and the
reverse direction runs the whole layer on a flipped copy. The transformer's attention loops over heads and tokens; its
rotary positions are products of complex numbers. Nothing here uses chunks, packing or padding.
"""

import math

import torch
from torch import Tensor

from gm_train.config.schema import ModelConfig

Parameters = dict[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over the last dimension, with epsilon 1e-5."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def silu(x: Tensor) -> Tensor:
    """SiLU activation."""
    return x / (1 + torch.exp(-x))


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Causal depthwise convolution.

    Args:
        x: (length, channels).
        weight: (channels, 1, taps); the last tap applies to the token itself.
        bias: (channels,).
    """
    taps = weight.shape[-1]
    rows = []
    for t in range(len(x)):
        y = bias
        for k in range(taps):
            if t - k >= 0:
                y = y + weight[:, 0, taps - 1 - k] * x[t - k]
        rows.append(y)
    return torch.stack(rows)


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t and y_t = C_t h_t + D x_t.

    Args:
        x: (length, heads, head_dim).
        dt: (length, heads).
        A: (heads,).
        B: (length, d_state).
        C: (length, d_state).
        D: (heads,).

    Returns:
        y (length, heads, head_dim).
    """
    h = torch.zeros(*x.shape[1:], B.shape[-1], dtype=x.dtype)
    rows = []
    for t in range(len(x)):
        h = torch.exp(dt[t] * A)[:, None, None] * h + dt[t][:, None, None] * x[t][:, :, None] * B[t]
        rows.append((h * C[t]).sum(-1) + D[:, None] * x[t])
    return torch.stack(rows)


def mixer(u: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """One direction of a Mamba-2 mixer.

    Args:
        u: (length, d_model).
        p: parameters of the mixer.
        config: of the model.
    """
    y, z, _ = scanned(u, p, config)
    return projected(y, z, p)


def head_gated(u: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """Both directions of a mixer, weighted head by head before the norm and the output projection.

    Args:
        u: (length, d_model).
        p: parameters of the mixer.
        config: of the model.
    """
    forward, z, g = scanned(u, p, config)
    reverse = scanned(u.flip(0), p, config)[0].flip(0)
    g = (1 / (1 + torch.exp(-g)))[:, :, None]
    return projected(g * forward + (1 - g) * reverse, z, p)


def projected(y: Tensor, z: Tensor, p: Parameters) -> Tensor:
    """Gated norm and output projection of a mixer.

    Args:
        y: output of the scan, (length, heads, head_dim).
        z: input of the gate, (length, d_inner).
        p: parameters of the mixer.
    """
    return rms_norm(y.reshape(z.shape) * silu(z), p["norm.weight"]) @ p["out_proj.weight"].T


def scanned(u: Tensor, p: Parameters, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Input projection, convolution and scan of a mixer.

    Args:
        u: (length, d_model).
        p: parameters of the mixer.
        config: of the model.

    Returns:
        y (length, heads, head_dim), z (length, d_inner) and the columns of in_proj after dt, which only head_gate has.
    """
    d_inner = config.expand * config.d_model
    heads = d_inner // config.head_dim
    columns = u @ p["in_proj.weight"].T
    widths = [d_inner, d_inner + 2 * config.d_state, heads]
    z, xBC, dt, g = columns.split([*widths, columns.shape[1] - sum(widths)], dim=-1)
    xBC = silu(convolve(xBC, p["conv1d.weight"], p["conv1d.bias"]))
    x, B, C = xBC.split([d_inner, config.d_state, config.d_state], dim=-1)
    dt = torch.log(1 + torch.exp(dt + p["dt_bias"]))
    return scan(x.reshape(-1, heads, config.head_dim), dt, -torch.exp(p["A_log"]), B, C, p["D"]), z, g


def aggregate(x_f: Tensor, x_b: Tensor, kind: str, p: Parameters) -> Tensor:
    """Combine both directions.

    Args:
        x_f: states of the forward direction, (length, d_model).
        x_b: states of the reverse direction, (length, d_model).
        kind: "mean", "sum", "concat" or "gate".
        p: parameters of the aggregation.
    """
    if kind == "mean":
        return (x_f + x_b) / 2
    if kind == "sum":
        return x_f + x_b
    joined = torch.cat([x_f, x_b], dim=-1) @ p["proj.weight"].T + p["proj.bias"]
    if kind == "concat":
        return joined
    z = 1 / (1 + torch.exp(-joined))
    return z * x_f + (1 - z) * x_b


def attention(u: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """Attention of each token to all tokens of its cell: values weighted by softmax(q k / sqrt(head_dim)) per head.

    Args:
        u: (length, d_model).
        p: parameters of the attention.
        config: of the model.
    """
    head_dim = config.d_model // config.n_heads
    q, k, v = (u @ p["qkv_proj.weight"].T).split(config.d_model, dim=-1)
    turns = torch.stack([rank * frequencies(head_dim) for rank in range(len(u))])

    def turned(x: Tensor) -> Tensor:
        half = head_dim // 2
        z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(turns), turns)
        return torch.cat([z.real, z.imag], dim=-1)

    heads = []
    for h in range(config.n_heads):
        own = slice(h * head_dim, (h + 1) * head_dim)
        q_h, k_h, rows = turned(q[:, own]), turned(k[:, own]), []
        for t in range(len(u)):
            weights = torch.exp(k_h @ q_h[t] / math.sqrt(head_dim))
            rows.append((weights / weights.sum()) @ v[:, own])
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=-1) @ p["out_proj.weight"].T


def frequencies(width: int) -> Tensor:
    """Angular frequencies of positional encodings: float64 (width / 2,)."""
    return torch.tensor([1 / 10_000 ** (2 * i / width) for i in range(width // 2)], dtype=torch.float64)


def encoder_layer(x: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """One layer of the transformer.

    Args:
        x: (length, d_model).
        p: parameters of the layer.
        config: of the model.
    """
    x = x + attention(rms_norm(x, p["attention_norm.weight"]), under("attention.", p), config)
    y = rms_norm(x, p["feed_forward_norm.weight"]) @ p["feed_forward.up_proj.weight"].T
    y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
    return x + y @ p["feed_forward.down_proj.weight"].T


def under(prefix: str, p: Parameters) -> Parameters:
    """The parameters whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}


def states(tokens: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """States of one cell after the final norm: (length, d_model).

    Args:
        tokens: of the cell, int64 (length,).
        p: all named parameters of the model.
        config: of the model.
    """

    def normed(x: Tensor, layer: str) -> Tensor:
        return rms_norm(x, p[f"{layer}norm.weight"]) if config.norm == "pre" else x

    x = p["embedding.weight"][tokens]
    if config.arch == "transformer":
        turns = torch.stack([rank * frequencies(config.d_model) for rank in range(len(x))])
        x = x + torch.cat([torch.sin(turns), torch.cos(turns)], dim=-1)
    for i in range(config.n_layers):
        layer = f"stack.layers.{i}."
        if config.arch == "transformer":
            x = encoder_layer(x, under(layer, p), config)
            continue
        weights = under(f"{layer}mixer.", p)
        if config.arch == "bimamba" and config.aggregation == "head_gate":
            x = x + head_gated(normed(x, layer), weights, config)
            continue
        x_f = x + mixer(normed(x, layer), weights, config)
        if config.arch == "mamba":
            x = x_f
            continue
        flipped = x.flip(0)
        x_b = (flipped + mixer(normed(flipped, layer), weights, config)).flip(0)
        gate = under(f"stack.aggregations.{i if config.gate_per_layer else 0}.", p)
        x = aggregate(x_f, x_b, config.aggregation, gate)
    return rms_norm(x, p["norm.weight"])


def logits(x: Tensor, p: Parameters, config: ModelConfig) -> Tensor:
    """Logits (length, vocabulary) of states.

    Args:
        x: states after the final norm, (length, d_model).
        p: all named parameters of the model.
        config: of the model.
    """
    if config.tie_output:
        return x @ p["embedding.weight"].T / math.sqrt(config.d_model) + p["output.bias"]
    return x @ p["output.weight"].T + p["output.bias"]

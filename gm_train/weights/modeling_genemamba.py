"""GeneMamba in one file: it computes what gm-train's model computes, and needs only PyTorch and safetensors.

`load(folder)` builds the model from `config.json` and `model.safetensors` beside this file. If transformers is
installed, `AutoModel`, `AutoModelForMaskedLM` and `AutoModelForSequenceClassification` load the folder as well, with
`trust_remote_code=True`. The file is for trained weights: gm-train is what trains new ones.

Inputs are padded batches: `input_ids`, int64 (batch, length), one cell a row, best-ranked gene first, and
`attention_mask`, (batch, length), 1 on the cell's tokens, which are contiguous, and 0 on pads. Without a mask, all
tokens but pads count. Pads do not change the states of a cell.
"""

# mypy: disable-error-code="no-untyped-call"

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput
except ImportError:
    PreTrainedModel = None  # type: ignore[assignment,misc]

AGGREGATIONS = ("gate", "concat", "mean", "sum", "head_gate")
PAD = 0
_DT_FLOOR = 1e-30  # keeps the logarithm finite where softplus underflows


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width)."""
        wide = x.to(self.weight.dtype)
        return (wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight).to(x.dtype)


class GatedRMSNorm(RMSNorm):
    """RMSNorm of y * gate, rounded as in gm-train."""

    def forward(self, y: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """Gate and normalise (..., width)."""
        gated = y.to(self.weight.dtype) * gate
        with torch.autocast(y.device.type, enabled=False):  # which would make this product bfloat16
            square = torch.linalg.vecdot(gated, gated)[..., None]
        normed: Tensor = gated * (square / gated.shape[-1] + self.eps).rsqrt() * self.weight
        return normed.to(y.dtype)


class Bounds:
    """Where cells begin and end, in the forms that convolution and scan need.

    Args:
        segment: integer (batch, length), each cell and the pads a contiguous run of one number.
        chunk: tokens that the scan processes at once.
        taps: width of the convolution.
        dtype: type of the decay.
    """

    def __init__(self, segment: Tensor, chunk: int, taps: int, dtype: torch.dtype) -> None:
        length = segment.shape[1]
        change = torch.ones_like(segment, dtype=torch.bool)
        change[:, 1:] = segment[:, 1:] != segment[:, :-1]
        run = change.cumsum(1)
        self.chunk = chunk
        self.same = [(run[:, k:] == run[:, :-k])[..., None] for k in range(1, min(taps, length))]
        filled = F.pad(run, (0, -length % chunk)).view(len(run), -1, chunk)
        pair = filled[..., :, None] == filled[..., None, :]
        first, last = filled[..., :1], filled[..., -1:]
        outside = torch.full_like(first[:, :1], -1)
        before, after = torch.cat([outside, last[:, :-1]], 1), torch.cat([first[:, 1:], outside], 1)

        def log_mask(allowed: Tensor, *shape: int) -> Tensor:
            zeros = torch.zeros(allowed.shape, dtype=dtype, device=segment.device)
            return zeros.masked_fill(~allowed, -torch.inf).view(-1, *shape)

        def direction(readable: Tensor, leaving: Tensor, entering: Tensor) -> tuple[Tensor, ...]:
            within = log_mask(readable, 1, chunk, chunk)
            into, out = log_mask(filled == leaving, chunk, 1), log_mask(filled == entering, chunk, 1)
            return within, into, out, entering == leaving

        self.forward = direction(pair.tril(), last, before)
        self.reverse = direction(pair.triu(), first, after)
        self.sums = pair.tril().view(-1, chunk, chunk).to(torch.float64)


class DepthwiseConv(nn.Module):
    """Filter each channel within a cell, causally and mirrored, followed by SiLU."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, taps))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, bounds: Bounds, bidirectional: bool) -> list[Tensor]:
        """Filter (batch, length, channels): y_t sums w_k x_(t-k), in the mirrored form w_k x_(t+k)."""
        taps = self.weight.squeeze(1).T.flip(0).to(x.dtype)
        causal = mirrored = torch.addcmul(self.bias.to(x.dtype), x, taps[0])
        for k, same in enumerate(bounds.same, start=1):
            tap = taps[k] * same.to(x.dtype)
            causal = torch.addcmul(causal, *(F.pad(v, (0, 0, k, 0)) for v in (x[:, :-k], tap)))
            if bidirectional:
                mirrored = torch.addcmul(mirrored, *(F.pad(v, (0, 0, 0, k)) for v in (x[:, k:], tap)))
        return [F.silu(y) for y in ((causal, mirrored) if bidirectional else (causal,))]


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bounds: Bounds, reverse: bool) -> Tensor:
    """Mamba-2's recurrence h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t, y_t = C_t h_t + D x_t, as products over chunks.

    Args:
        x: (batch, length, heads, head_dim).
        dt: (batch, length, heads), positive.
        A: (heads,), negative.
        B: (batch, length, d_state).
        C: (batch, length, d_state).
        D: (heads,).
        bounds: of the same rows.
        reverse: read from the right.

    Returns:
        y, in the shape of x.
    """
    batch, length, heads, width = x.shape
    chunk = bounds.chunk
    fill = -length % chunk
    x, dt, B, C = F.pad(x, (0, 0, 0, 0, 0, fill)), *(F.pad(v, (0, 0, 0, fill)) for v in (dt, B, C))
    n_chunks = (length + fill) // chunk
    n = batch * n_chunks
    within, into, out, carry = bounds.reverse if reverse else bounds.forward
    x, B, C = x.reshape(n, chunk, heads, width), B.reshape(n, chunk, -1), C.reshape(n, chunk, -1)
    # Powers of 2 instead of e, with exponents divided by ln 2; their sums in float64.
    log_decay = (dt * (A / math.log(2))).view(n, chunk, heads)
    inclusive = (bounds.sums @ log_decay.double()).to(dt.dtype)
    total = inclusive[:, -1:]
    if reverse:
        exclusive = inclusive - log_decay
        level, to_exit, from_entry = -exclusive, exclusive, total - exclusive
    else:
        level, to_exit, from_entry = inclusive, total - inclusive, inclusive
    log_dt = dt.clamp(min=_DT_FLOOR).log2().view(n, chunk, heads)
    row, column = level.transpose(1, 2), (log_dt - level).transpose(1, 2)
    decay = (row[..., :, None] + column[..., None, :] + within).exp2()
    scores = (C @ B.transpose(1, 2))[:, None] * decay + torch.diag_embed(D[:, None].expand(-1, chunk))
    y = (scores.to(x.dtype) @ x.transpose(1, 2)).transpose(1, 2)
    if n_chunks > 1:
        weight = (to_exit + log_dt + into).exp2()
        adds = (B.transpose(1, 2) @ (x * weight[..., None]).view(n, chunk, -1)).view(batch, n_chunks, -1, heads, width)
        keep = total.exp2().view(batch, n_chunks, 1, heads, 1) * carry[..., None, None]
        state = torch.zeros_like(adds[:, 0])
        states = [state]
        for c in range(n_chunks - 1, 0, -1) if reverse else range(n_chunks - 1):
            state = torch.addcmul(adds[:, c], state, keep[:, c])
            states.append(state)
        entering = torch.stack(states[::-1] if reverse else states, dim=1)
        carried = (C @ entering.reshape(n, -1, heads * width)).view(n, chunk, heads, width)
        y = carried * (from_entry + out).exp2()[..., None] + y
    return y.reshape(batch, length + fill, heads, width)[:, :length].to(x.dtype)


class Mixer(nn.Module):
    """Mamba-2's mixer (arXiv 2405.21060) in one direction, or in both with shared weights."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.d_inner = config.expand * config.d_model
        self.d_state, self.n_heads = config.d_state, self.d_inner // config.head_dim
        self.head_gate = config.arch == "bimamba" and config.aggregation == "head_gate"
        channels = self.d_inner + 2 * self.d_state
        self.widths = [self.d_inner, channels, self.n_heads, self.n_heads if self.head_gate else 0]
        self.in_proj = nn.Linear(config.d_model, sum(self.widths), bias=False)
        self.conv1d = DepthwiseConv(channels, config.d_conv)
        self.dt_bias = nn.Parameter(torch.zeros(self.n_heads))
        self.A_log = nn.Parameter(torch.zeros(self.n_heads))
        self.D = nn.Parameter(torch.ones(self.n_heads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, config.d_model, bias=False)

    def forward(self, u: Tensor, bounds: Bounds, bidirectional: bool) -> list[Tensor]:
        """Mix (batch, length, d_model); return each direction's output, or with `head_gate` the joined one."""
        z, xBC, dt, g = torch.split(self.in_proj(u), self.widths, dim=-1)
        dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        A, gate, scans = -self.A_log.exp(), F.silu(z), []
        for i, mixed in enumerate(self.conv1d(xBC, bounds, bidirectional)):
            x, B, C = torch.split(mixed, [self.d_inner, self.d_state, self.d_state], dim=-1)
            scans.append(scan(x.reshape(*x.shape[:-1], self.n_heads, -1), dt, A, B, C, self.D, bounds, reverse=i == 1))
        if self.head_gate:
            scans = [torch.lerp(scans[1], scans[0], torch.sigmoid(g)[..., None])]
        return [self.out_proj(self.norm(y.flatten(-2), gate)) for y in scans]


class Join(nn.Module):
    """Join the two directions of a layer (arXiv 2504.16956), or add the only one to the layer's input."""

    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("gate", "concat"):
            self.proj = nn.Linear(2 * d_model, d_model)

    def forward(self, x: Tensor, f: Tensor, b: Tensor | None = None) -> Tensor:
        """Join the layer's input and the mixer's outputs, all (batch, length, d_model)."""
        if b is None:
            return x + f
        if self.kind == "mean":
            return x + (f + b) / 2
        if self.kind == "sum":
            return 2 * x + f + b
        projected: Tensor = self.proj(torch.cat([x + f, x + b], dim=-1))
        return projected if self.kind == "concat" else x + torch.lerp(b, f, torch.sigmoid(projected))


class Layer(nn.Module):
    """A mixer and the norm before it, if there is one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model) if config.norm == "pre" else nn.Identity()
        self.mixer = Mixer(config)

    def forward(self, x: Tensor, bounds: Bounds, bidirectional: bool) -> list[Tensor]:
        """Mix (batch, length, d_model), without the residual connection."""
        outputs: list[Tensor] = self.mixer(self.norm(x), bounds, bidirectional)
        return outputs


class Stack(nn.Module):
    """The layers, with one aggregation for all of them or one for each."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bidirectional = config.arch == "bimamba"
        self.chunk, self.taps = config.chunk, config.d_conv
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        n_joins = 0 if not self.bidirectional else config.n_layers if config.gate_per_layer else 1
        self.aggregations = nn.ModuleList(Join(config.aggregation, config.d_model) for _ in range(n_joins))

    def forward(self, x: Tensor, segment: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same shape."""
        bounds = Bounds(segment, self.chunk, self.taps, x.dtype)
        add = Join("add", 0)
        for i, layer in enumerate(self.layers):
            join = self.aggregations[i % len(self.aggregations)] if self.bidirectional else add
            x = join(x, *layer(x, bounds, self.bidirectional))
        return x


class OutputLayer(nn.Module):
    """Logits over the vocabulary; tied, with the embedding's weights and states divided by sqrt(d_model)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(config.d_model)
        self.weight = None if config.tie_output else nn.Parameter(torch.zeros(config.vocab_size, config.d_model))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        """Compute logits (..., vocab_size) of states (..., d_model)."""
        if self.weight is None:
            return F.linear(states * self.scale, embedding, self.bias)
        return F.linear(states, self.weight, self.bias)


def check(config: Any) -> None:
    """Raise ValueError if this file does not have the configuration's model."""
    known = (
        config.arch in ("bimamba", "mamba") and config.aggregation in AGGREGATIONS and config.norm in ("none", "pre")
    )
    if not known:
        raise ValueError(
            f"arch={config.arch!r}, aggregation={config.aggregation!r}, norm={config.norm!r}: not a model of this file"
        )


def states_of(model: Any, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Compute the final states, (batch, length, d_model); those of pads are finite but meaningless."""
    mask = mask_of(input_ids, attention_mask)
    states: Tensor = model.norm(model.stack(model.embedding(input_ids), mask.long()))
    return states


def mask_of(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the mask as bool (batch, length); without one, all tokens but pads count."""
    return (input_ids != PAD) if attention_mask is None else attention_mask.bool()


def cell_embeddings(states: Tensor, mask: Tensor) -> Tensor:
    """Average the states (batch, length, d_model) over the tokens of each cell: (batch, d_model)."""
    weight = mask.to(states.dtype)[..., None]
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        check(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.stack = Stack(config)
        self.norm = RMSNorm(config.d_model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the final states, (batch, length, d_model)."""
        return states_of(self, input_ids, attention_mask)


class Classifier(nn.Module):
    """Linear layers with ReLU between them, on the mean of a cell's states.

    Args:
        config: has `d_model`, and of a fine-tuned model `head_layers` and `head_width`.
        n_classes: number of logits.
    """

    def __init__(self, config: Any, n_classes: int) -> None:
        super().__init__()
        inner = [getattr(config, "head_width", 0)] * (getattr(config, "head_layers", 1) - 1)
        sizes = [config.d_model, *inner, n_classes]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Compute logits (cells, n_classes) of embeddings (cells, d_model)."""
        for number, layer in enumerate(self.layers):
            embeddings = layer(embeddings if number == 0 else F.relu(embeddings))
        return embeddings


class GeneMamba(nn.Module):
    """The model without transformers; `load` makes one.

    Args:
        config: an object with the sizes and variants of `config.json` as attributes.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.genemamba = Backbone(config)
        self.output = OutputLayer(config)
        # A model that was fine-tuned for a label.
        names = getattr(config, "id2label", {}) if hasattr(config, "head_layers") else {}
        self.classes = [names[str(number)] for number in range(len(names))]
        self.classifier = Classifier(config, len(names)) if names else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the final states, (batch, length, d_model)."""
        states: Tensor = self.genemamba(input_ids, attention_mask)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Compute logits (..., vocab_size) of states (..., d_model)."""
        logits: Tensor = self.output(states, self.genemamba.embedding.weight)
        return logits

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the embedding of each cell, the mean of its states: (batch, d_model)."""
        return cell_embeddings(self(input_ids, attention_mask), mask_of(input_ids, attention_mask))

    def class_logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute logits of `classes` for each cell, (batch, n_classes), with a fine-tuned model."""
        if self.classifier is None:
            raise ValueError("these weights were not fine-tuned for a label")
        logits: Tensor = self.classifier(self.embed(input_ids, attention_mask))
        return logits


def load(folder: str | Path | None = None) -> GeneMamba:
    """Build the model from `config.json` and `model.safetensors`, in evaluation mode.

    Args:
        folder: where they are; None: beside this file.
    """
    from safetensors.torch import load_file

    folder = Path(__file__).parent if folder is None else Path(folder)
    model = GeneMamba(SimpleNamespace(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


if PreTrainedModel is not None:

    class GeneMambaConfig(PretrainedConfig):
        """Sizes and variants of the model."""

        model_type = "genemamba"
        attribute_map: ClassVar = {"hidden_size": "d_model", "num_hidden_layers": "n_layers"}

    class GeneMambaPreTrained(PreTrainedModel):
        """What the classes for transformers share."""

        config_class = GeneMambaConfig
        base_model_prefix = "genemamba"

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear | nn.Embedding):
                module.reset_parameters()

    class GeneMambaModel(GeneMambaPreTrained):
        """Final states of the tokens."""

        _keys_to_ignore_on_load_unexpected = [r"output\..*", r"classifier\..*"]  # noqa: RUF012

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            check(config)
            self.embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.stack = Stack(config)
            self.norm = RMSNorm(config.d_model)
            self.post_init()

        def get_input_embeddings(self) -> nn.Module:
            """Return the embedding."""
            return self.embedding

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
            """Compute `last_hidden_state`, (batch, length, d_model)."""
            return BaseModelOutput(last_hidden_state=states_of(self, input_ids, attention_mask))

    class GeneMambaForMaskedLM(GeneMambaPreTrained):
        """Logits of the genes; labels of -100 are ignored."""

        _keys_to_ignore_on_load_unexpected = [r"classifier\..*"]  # noqa: RUF012

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.genemamba = GeneMambaModel(config)
            self.output = OutputLayer(config)
            self.post_init()

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
        ) -> Any:
            """Compute `logits`, (batch, length, vocab_size), and with labels `loss`."""
            states = states_of(self.genemamba, input_ids, attention_mask)
            logits = self.output(states, self.genemamba.embedding.weight)
            loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return MaskedLMOutput(loss=loss, logits=logits)

    class GeneMambaForSequenceClassification(GeneMambaPreTrained):
        """Classes of cells, from the mean of a cell's states; new and untrained unless the weights were fine-tuned."""

        _keys_to_ignore_on_load_unexpected = [r"output\..*"]  # noqa: RUF012

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.genemamba = GeneMambaModel(config)
            self.classifier = Classifier(config, config.num_labels)
            self.post_init()

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
        ) -> Any:
            """Compute `logits`, (batch, num_labels), and with labels, int64 (batch,), `loss`."""
            states = states_of(self.genemamba, input_ids, attention_mask)
            logits = self.classifier(cell_embeddings(states, mask_of(input_ids, attention_mask)))
            loss = None if labels is None else F.cross_entropy(logits, labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)

"""Floating-point operations (FLOPs) that a model needs per token: a multiplication and an addition count as two.

Matrix products and the convolution are counted. Norms, gates, activations, the running sums of the decay and the
softmax are not. The scan is counted in its chunked form, with whole chunks, as it is computed. The gradient of a
product takes two products of the same size, so a training step counts as three forward passes. Work that activation
checkpointing or a memory-saving kernel repeats is counted once. Pads are not counted.
"""

from dataclasses import dataclass, replace

import torch

from gm_train.config.schema import ModelConfig
from gm_train.model.kernels.scan_kernels import CHUNK, choose_kernel, scan_sizes

#: FLOPs of a training step divided by those of a forward pass.
TRAINING = 3


@dataclass(frozen=True)
class Work:
    """The work of a step, per real token.

    Attributes:
        context: tokens of a token's cell, averaged over tokens; attention spans so many.
        targets: predicted positions.
        projections: how often the input projection of a layer is computed.
    """

    context: float
    targets: float
    projections: int = 1


def forward_parts(config: ModelConfig, vocabulary_size: int, work: Work) -> dict[str, float]:
    """Return the FLOPs of a forward pass per real token, by part; the parts add up to the whole pass.

    Args:
        config: sizes and variant.
        vocabulary_size: number of tokens.
        work: the work per token.
    """
    d = config.d_model
    if config.arch == "transformer":
        parts = {
            "projections": 2.0 * 4 * d * d,  # queries, keys, values, output
            "attention": 2.0 * 2 * d * work.context,  # scores, weighted values
            "feed-forward": 2.0 * 2 * d * config.d_ff,
        }
    else:
        parts = _mamba_parts(config, work.projections)
    return {part: config.n_layers * flops for part, flops in parts.items()} | {
        "output": 2.0 * d * vocabulary_size * work.targets
    }


def _mamba_parts(config: ModelConfig, projections: int) -> dict[str, float]:
    d, state = config.d_model, config.d_state
    inner = config.expand * d
    heads = inner // config.head_dim
    directions = 2 if config.arch == "bimamba" else 1
    joined_first = directions == 2 and config.aggregation == "head_gate"
    columns = 2 * inner + 2 * state + heads + (heads if joined_first else 0)
    joins = directions == 2 and config.aggregation in ("gate", "concat")
    return {
        "projections": 2.0 * d * columns * projections + 2.0 * inner * d * (1 if joined_first else directions),
        "convolution": 2.0 * directions * config.d_conv * (inner + 2 * state),
        # Per chunk: C B', S x, the contribution to the state, the contribution of the state
        "scan": 2.0 * directions * (config.chunk * (state + inner) + 2 * state * inner),
        "aggregation": 2.0 * 2 * d * d if joins else 0.0,
    }


def training_flops(config: ModelConfig, vocabulary_size: int, work: Work) -> float:
    """Return the FLOPs of a training step per real token, forward and backward.

    Args:
        config: sizes and variant.
        vocabulary_size: number of tokens.
        work: the work per token.
    """
    return TRAINING * sum(forward_parts(config, vocabulary_size, work).values())


def as_computed(model: ModelConfig, device: torch.device) -> ModelConfig:
    """Return the model's settings with the scan's chunk size as it runs on a device: mamba_ssm uses its own."""
    if model.arch == "transformer" or choose_kernel(model.kernel, device, scan_sizes(model))[0] == "torch":
        return model
    return replace(model, chunk=CHUNK)

"""Floating-point operations that a model needs for a token: a multiplication and an addition count as two.

What is counted are matrix products and the convolution. Norms, gates, activations, the running sums of the decay and
the softmax are not. The scan is counted in its chunked form, with whole chunks, as it is computed. The gradient of a
product takes two products of its size, so a training step is three times a forward pass; what activation checkpointing
or a memory-saving kernel computes twice is counted once. Pads are not needed and not counted.
"""

from dataclasses import dataclass

from gm_train.config.schema import ModelConfig

#: A training step over a forward pass.
TRAINING = 3


@dataclass(frozen=True)
class Work:
    """What a step has to do, per real token.

    Attributes:
        context: tokens of the cell that a token is in, on average over tokens; the reach of attention.
        targets: predicted positions.
        projections: times that the input projection of a layer is computed.
    """

    context: float
    targets: float
    projections: int = 1


def forward_parts(config: ModelConfig, vocabulary_size: int, work: Work) -> dict[str, float]:
    """FLOPs of a forward pass per real token, by part; their sum is the whole.

    Args:
        config: sizes and variant.
        vocabulary_size: number of tokens.
        work: what is needed of it.
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
        # C B', S x, what a chunk adds to the state, what the state adds to a chunk
        "scan": 2.0 * directions * (config.chunk * (state + inner) + 2 * state * inner),
        "aggregation": 2.0 * 2 * d * d if joins else 0.0,
    }


def training_flops(config: ModelConfig, vocabulary_size: int, work: Work) -> float:
    """FLOPs of a training step per real token, forward and backward."""
    return TRAINING * sum(forward_parts(config, vocabulary_size, work).values())

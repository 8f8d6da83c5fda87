"""Operations and bytes of each kernel of a training step.

Bytes are those of an ideal kernel. Forward, each input and output is moved once. Backward, the incoming gradients and
the saved inputs are read once, and the gradients of the inputs are written once.
"""

from dataclasses import dataclass

from gm_train.config.schema import ModelConfig
from gm_train.plan.flops import TRAINING, Work, forward_parts

WIDE = 4  # bytes of each float32 value: parameters, gradients, moments, decays


@dataclass(frozen=True)
class Cost:
    """The least work of a kernel.

    Attributes:
        name: name in tables.
        count: how often a step runs it.
        flops: operations of one run, forward and backward.
        n_bytes: bytes that one run moves.
    """

    name: str
    count: int
    flops: float
    n_bytes: float


def costs(
    model: ModelConfig, vocabulary_size: int, slots: int, n_targets: int, n_parameters: int, narrow: int
) -> list[Cost]:
    """Return the costs of the kernels of a Bi-Mamba step, each for one layer or for the whole model.

    Args:
        model: sizes; `arch` is bimamba or mamba.
        vocabulary_size: number of tokens.
        slots: token slots in the rows of a step, pads included.
        n_targets: predicted positions.
        n_parameters: parameters of the whole model.
        narrow: bytes of an activation: 2 with bf16, else 4.
    """
    per_token = forward_parts(model, vocabulary_size, Work(0.0, n_targets / slots))
    flops = {part: TRAINING * slots * value for part, value in per_token.items()}
    of_layer = {part: value / model.n_layers for part, value in flops.items()}
    d, inner = model.d_model, model.expand * model.d_model
    heads, channels = inner // model.head_dim, inner + 2 * model.d_state
    directions = 2 if model.arch == "bimamba" else 1
    joined = directions == 2 and model.aggregation == "head_gate"
    outputs = 1 if joined else directions
    columns = inner + channels + heads * (2 if joined else 1)

    def linear(width: int, out: int, times: int = 1, read: int = narrow) -> float:
        return times * slots * (read * 3 * width + narrow * 2 * out) + 3 * WIDE * width * out

    kernels = [
        Cost(
            "projections",
            model.n_layers,
            of_layer["projections"],
            linear(d, columns, read=WIDE) + linear(inner, d, outputs),
        ),
        Cost("convolution", model.n_layers, of_layer["convolution"], narrow * slots * channels * (3 + 2 * directions)),
        Cost(
            "scan",
            model.n_layers,
            of_layer["scan"],
            directions * slots * (narrow * (3 * channels + 2 * inner) + 3 * WIDE * heads),
        ),
        Cost("gate and norm", model.n_layers, 0.0, 8.0 * narrow * slots * inner * outputs),
    ]
    if directions == 2 and not joined:
        weights = 3 * WIDE * 2 * d * d if of_layer["aggregation"] else 0
        moved = (5.0 * WIDE + 6.0 * narrow) * slots * d + weights  # the residual stream is float32
        kernels.append(Cost("aggregation", model.n_layers, of_layer["aggregation"], moved))
    return [
        *kernels,
        Cost("embedding", 1, 0.0, float(WIDE * (3 * slots * d + vocabulary_size * d))),
        Cost(
            "output layer and loss",
            1,
            flops["output"],
            3.0 * WIDE * d * vocabulary_size + 3.0 * narrow * n_targets * d,
        ),
        Cost("clipping", 1, 0.0, 3.0 * WIDE * n_parameters),
        Cost("optimizer", 1, 0.0, 7.0 * WIDE * n_parameters),
    ]

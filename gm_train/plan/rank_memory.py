"""Memory of a rank by part: what it holds between steps, and what a forward and a backward pass add."""

from dataclasses import dataclass, fields

from gm_train.config.schema import Config
from gm_train.model.output_layer import LOGITS_AT_A_TIME
from gm_train.plan.model_size import model_size
from gm_train.plan.traced_memory import pass_memory
from gm_train.strategies.choose import strategy_class

_WIDE = 4  # bytes of a float32: weights, gradients and moments


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank's device when most is in use.

    Attributes:
        weights, gradients, moments: what the strategy lets this rank hold; float32.
        gathered: weights and gradients of layers that a sharded strategy gathers while they compute.
        activations: what the forward pass of a micro-batch keeps for its backward pass.
        working: what comes on top for a moment, such as gradients of activations, or the logits of the loss.
    """

    weights: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(getattr(self, part.name) for part in fields(self))


def rank_memory(
    config: Config, vocabulary_size: int, strategy: str, world_size: int, micro_rows: int, on_gpu: bool
) -> RankMemory:
    """Plan the memory of a rank.

    Args:
        config: sizes, precision, rows.
        vocabulary_size: number of tokens.
        strategy: as `choose` returns it.
        world_size: number of ranks.
        micro_rows: rows of a forward pass.
        on_gpu: whether ranks have GPUs.

    Raises:
        DataError: the model is a transformer, or the strategy needs a package that is not installed.
    """
    size = model_size(config.model, vocabulary_size)
    kind = strategy_class(strategy)
    weights = _WIDE * size.whole // (world_size if kind.shards_weights else 1)
    rest = kind.state_bytes(size.whole, world_size) - weights
    gradients = rest // 3  # AdamW has two moments
    gathered = 0
    if kind.shards_weights:
        # The next layer is gathered while one computes; the gradient of one is whole until it is spread.
        gathered = _WIDE * (2 * size.root + 3 * size.layer)
        if strategy == "fsdp2" and micro_batches(config, world_size, micro_rows) > 1:
            # Gradients are spread over the ranks after the last micro-batch only.
            gathered = _WIDE * (size.root + 2 * size.layer + size.whole)
    of_pass = pass_memory(config, vocabulary_size, micro_rows, on_gpu)
    return RankMemory(weights, gradients, rest - gradients, gathered, of_pass.activations, of_pass.working)


def micro_batches(config: Config, world_size: int, micro_rows: int) -> int:
    """Return the number of forward passes of a rank in a step."""
    return config.data.step_rows // world_size // micro_rows


def logits_bytes(config: Config, vocabulary_size: int, micro_rows: int) -> int:
    """Return the bytes of the logits that the loss holds at a time, and of their copy in the type of the products."""
    objective = config.objective
    rate = objective.target_rate
    targets = round(rate * micro_rows * config.data.row_length)
    narrow = 2 if config.trainer.precision == "bf16" else 0
    return min(targets, max(1, LOGITS_AT_A_TIME // vocabulary_size)) * vocabulary_size * (_WIDE + narrow)

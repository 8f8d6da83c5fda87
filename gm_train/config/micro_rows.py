"""Choose the rows of a forward pass, `data.micro_rows`, where the configuration leaves them open.

The choice depends on settings and the number of ranks alone, not on the device: a run that is resumed on as many ranks
cuts its steps as before, and repeats bit for bit on CPUs.
"""

from dataclasses import replace

from gm_train.config.schema import Config, DataConfig

#: Most tokens of a forward pass: on a GPU, more tokens are hardly faster.
MOST_TOKENS = 49_152
#: Sizes at which the activations of so many tokens in bf16 fit a GPU of 80 GB; larger models get fewer tokens.
_LAYERS, _WIDTH = 24, 512
#: With fewer tokens in a forward pass, a GPU waits for launches, sums between ranks and the optimizer.
FEW_TOKENS = 32_000


def most_tokens(config: Config) -> int:
    """Return the most tokens that an automatic forward pass has: fewer for larger models, and half of it in fp32."""
    model, trainer = config.model, config.trainer
    narrow = 1.0 if trainer.precision == "bf16" else 0.5
    # With activation checkpointing, one layer's activations are in memory at a time.
    layers = 1 if trainer.activation_checkpointing else model.n_layers
    return int(MOST_TOKENS * min(1.0, narrow * _LAYERS * _WIDTH / (layers * model.d_model)))


def choose_micro_rows(config: Config, world_size: int) -> int:
    """Return `data.micro_rows`, or the largest divisor of a rank's rows of a step that `most_tokens` allows.

    Args:
        config: the configuration; `world_size` divides its lanes.
        world_size: number of ranks.
    """
    data = config.data
    if data.micro_rows is not None:
        return data.micro_rows
    rows = data.step_rows // world_size
    most = max(1, most_tokens(config) // data.row_length)
    return max(number for number in range(1, min(rows, most) + 1) if rows % number == 0)


def data_of_ranks(config: Config, world_size: int) -> DataConfig:
    """Return a copy of the data's settings with `data.micro_rows` chosen for this number of ranks."""
    return replace(config.data, micro_rows=choose_micro_rows(config, world_size))


def few_tokens(config: Config, world_size: int) -> str | None:
    """Warn of forward passes that are too small for a GPU; None if they are not.

    Args:
        config: the configuration; `world_size` divides its lanes.
        world_size: number of ranks, each with a GPU.
    """
    data = config.data
    micro_rows = choose_micro_rows(config, world_size)
    tokens, rows = micro_rows * data.row_length, data.step_rows // world_size
    if tokens >= FEW_TOKENS:
        return None
    small = f"a forward pass of a rank has {micro_rows} rows, {tokens:,} tokens: a GPU needs {FEW_TOKENS:,} to be busy"
    if rows * data.row_length >= FEW_TOKENS:
        fit = [number for number in range(1, rows + 1) if rows % number == 0 and number * data.row_length >= FEW_TOKENS]
        return f"{small}; data.micro_rows={fit[0]} has {fit[0] * data.row_length:,}, if they fit into memory"
    per_lane = -(-FEW_TOKENS * world_size // (data.lanes * data.row_length))
    times = per_lane / data.fixed_rows_per_lane
    return (
        f"{small}. Take fewer ranks; or, for a new run, data.rows_per_lane={per_lane}, which makes its batch "
        f"{times:.3g} times as large (a run that has begun keeps its batch)"
    )

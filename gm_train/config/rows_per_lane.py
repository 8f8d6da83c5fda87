"""Choose the rows that a step takes from each lane, `data.rows_per_lane`, where the configuration leaves them open.

They decide the size of a step, and so what a run is. So the choice is made once, at the run's first start, from
settings and the number of ranks alone; later starts keep it, on any number of ranks.
"""

from dataclasses import replace

from gm_train.config.micro_rows import FEW_TOKENS, choose_micro_rows, most_tokens
from gm_train.config.schema import Config


def choose_rows_per_lane(config: Config, world_size: int) -> int:
    """Return `data.rows_per_lane`, or the smallest number with which a rank's forward pass is large enough.

    Large enough are `FEW_TOKENS`, or as many tokens as an automatic forward pass may have, if these are fewer. Where
    `data.micro_rows` is set, a rank's rows of a step only have to be a multiple of it.

    Args:
        config: the configuration; `world_size` divides its lanes.
        world_size: number of ranks.
    """
    data = config.data
    if data.rows_per_lane is not None:
        return data.rows_per_lane
    lanes = data.lanes // world_size
    if data.micro_rows is not None:
        return next(number for number in range(1, data.micro_rows + 1) if lanes * number % data.micro_rows == 0)
    wanted = min(-(-FEW_TOKENS // data.row_length), max(1, most_tokens(config) // data.row_length))
    least = -(-wanted // lanes)
    if least == 1:
        return 1
    # Somewhat more rows may be easier to divide into forward passes of that size; much more are not worth it.
    for number in range(least, 2 * least):
        if choose_micro_rows(with_rows_per_lane(config, number), world_size) >= wanted:
            return number
    return least


def with_rows_per_lane(config: Config, number: int) -> Config:
    """Return a copy of the configuration with other settings of the data: this `data.rows_per_lane`."""
    return replace(config, data=replace(config.data, rows_per_lane=number))


def about_step(config: Config, world_size: int) -> str:
    """Say what was chosen, for the first start of a run.

    Args:
        config: with `data.rows_per_lane` as chosen.
        world_size: number of ranks.
    """
    data = config.data
    tokens = choose_micro_rows(config, world_size) * data.row_length
    text = (
        f"data.rows_per_lane={data.fixed_rows_per_lane}, chosen for {world_size} ranks and kept by this run: a step "
        f"has {data.step_rows:,} rows, a forward pass of a rank {tokens:,} tokens"
    )
    if data.fixed_rows_per_lane == 1:
        return text
    return (
        f"{text}. That is {data.fixed_rows_per_lane} times the smallest step, while optim.lr, optim.warmup_steps and "
        "trainer.max_steps are as configured: set them for this step, or set data.rows_per_lane=1"
    )

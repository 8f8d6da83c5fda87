"""Choose how a step is spread over ranks: by the configuration, or by the model's size and the devices' memory."""

import importlib.util
import os

import torch

from data_shards.errors import DataError
from gm_train.config.parts import STRATEGIES, load_part
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.steps import BYTES_PER_PARAMETER, Steps

#: Share of a device's memory that these may take on every rank before `auto` shards them. Sharded layers are gathered
#: again in every pass: between nodes that costs more, so more memory is given to avoid it.
_WHOLE_ON_ONE_NODE, _WHOLE_ON_MANY = 0.4, 0.6


def choose(strategy: str, n_parameters: int, ranks: Ranks, memory: int) -> tuple[str, str]:
    """The strategy to use, and why.

    Args:
        strategy: `trainer.strategy`.
        n_parameters: of the model.
        ranks: this process among the others.
        memory: bytes of the device; of the machine, for each rank on it, on a CPU.

    Returns:
        `single`, `ddp`, `fsdp2`, `zero2` or `zero3`, and a line for people.
    """
    if strategy == "ddp" and ranks.world_size == 1:
        return "single", "one rank, nothing to spread"
    if strategy != "auto":
        return strategy, "as configured"
    if ranks.world_size == 1:
        return "single", "auto: one rank, nothing to spread"
    state = BYTES_PER_PARAMETER * n_parameters
    limit = _WHOLE_ON_ONE_NODE if ranks.n_nodes == 1 else _WHOLE_ON_MANY
    fits = state <= limit * memory
    return "ddp" if fits else "fsdp2", (
        f"auto: weights, gradients and moments take {state / 1e9:.2f} GB a rank, "
        f"{'at most' if fits else 'more than'} {limit:.0%} of its {memory / 1e9:.0f} GB "
        f"on {ranks.n_nodes} node{'s' if ranks.n_nodes > 1 else ''}"
    )


def refuse_without_deepspeed(what: str) -> None:
    """Raise DataError, with the line that installs it, if DeepSpeed is missing."""
    if importlib.util.find_spec("deepspeed") is None:
        raise DataError(f"{what} needs DeepSpeed, which is not installed: pip install 'gm-train[deepspeed]'")


def device_memory(ranks: Ranks) -> int:
    """Bytes of this rank's GPU, or its share of the machine's memory."""
    device = ranks.device()
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.local_size


def strategy_class(name: str) -> type[Steps]:
    """The class of a strategy, from the table in `config/parts.py`.

    Raises:
        DataError: it needs DeepSpeed, which is not installed.
    """
    if name.startswith("zero"):
        refuse_without_deepspeed(f"trainer.strategy={name}")
    found: type[Steps] = load_part(STRATEGIES, name)
    return found

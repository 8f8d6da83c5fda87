"""Choose the strategy that spreads a step over ranks: as configured, or by model size and device memory."""

import importlib.util
import os

import torch

from data_shards.errors import DataError
from gm_train.config.parts import load_part
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.steps import BYTES_PER_PARAMETER, Steps

#: `auto` shards weights, gradients and moments once they take more than this share of a device's memory. Sharded layers
#: are gathered again in every pass. Between nodes that costs more, so the limit is higher there.
_WHOLE_ON_ONE_NODE, _WHOLE_ON_MANY = 0.4, 0.6
#: Values of `trainer.strategy` that train a single rank without a process group; `choose` makes them `single`.
WITHOUT_GROUP = ("auto", "ddp")


def choose(strategy: str, n_parameters: int, ranks: Ranks, memory: int) -> tuple[str, str]:
    """Choose the strategy, and say why.

    Args:
        strategy: `trainer.strategy`.
        n_parameters: number of parameters of the model.
        ranks: this process among the others.
        memory: bytes that this rank has, from `device_memory`.

    Returns:
        `single`, `ddp`, `fsdp2`, `zero2` or `zero3`; and the reason, to be printed.
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
    """Raise DataError if DeepSpeed is missing; the message starts with `what` and ends with the install command."""
    if importlib.util.find_spec("deepspeed") is None:
        raise DataError(f"{what} needs DeepSpeed, which is not installed: pip install 'gm-train[deepspeed]'")


def device_memory(ranks: Ranks) -> int:
    """Bytes of memory of this rank's GPU; on a CPU, an equal share of the machine's memory."""
    device = ranks.device()
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.local_size


def strategy_class(name: str) -> type[Steps]:
    """The class of a strategy, from the table in `config/parts.py`.

    Raises:
        DataError: the strategy needs DeepSpeed, which is not installed.
    """
    if name.startswith("zero"):
        refuse_without_deepspeed(f"trainer.strategy={name}")
    strategy: type[Steps] = load_part("trainer.strategy", name)
    return strategy

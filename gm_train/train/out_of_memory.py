"""Turn running out of GPU memory into one message that says what to change."""

import contextlib
from collections.abc import Iterator

import torch

from data_shards.errors import DataError
from gm_train.config.micro_rows import choose_micro_rows
from gm_train.config.schema import Config
from gm_train.ranks.ranks import Ranks

_GIB = 1 << 30


@contextlib.contextmanager
def advising_on_memory(config: Config, ranks: Ranks) -> Iterator[None]:
    """Raise DataError with advice if the block runs out of GPU memory.

    Args:
        config: of the run.
        ranks: this process among the others.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = (str(error).splitlines() or ["out of memory"])[0]
        found = f"rank {ranks.global_rank}: {first}{_in_use(ranks.device())}"
        raise DataError(f"{found}: {advice(config, ranks)}{_planned(config, ranks)}") from error


def _in_use(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    most = torch.cuda.max_memory_allocated(device) / _GIB
    free, total = (n / _GIB for n in torch.cuda.mem_get_info(device))
    return f" (tensors took up to {most:.1f} GiB; {total - free:.1f} of the GPU's {total:.1f} GiB are in use)"


def _planned(config: Config, ranks: Ranks) -> str:
    """What the plan says of these settings, to compare with what was in use; empty if it says nothing."""
    # Imported here: a run that does not fail needs none of it.
    from gm_train.plan.this_device import plan_here

    try:
        plan = plan_here(config, ranks)
    except Exception:  # whatever it is, it must not take the place of the advice
        return ""
    memory, total = plan.memory, plan.device_memory or 0
    state = memory.weights + memory.gradients + memory.moments + memory.gathered
    return (
        f". By the plan, weights and their state take {state / 1e9:.2g} GB of this device's {total / 1e9:.3g} GB, and "
        f"a forward and backward pass {(memory.activations + memory.working) / 1e9:.2g} GB: `gm-train plan` compares "
        "settings"
    )


def advice(config: Config, ranks: Ranks) -> str:
    """Say which settings lower the memory that this run needs: those that are not as low as they can be.

    Args:
        config: of the run.
        ranks: this process among the others.
    """
    trainer, data = config.trainer, config.data
    ways = []
    rows = data.step_rows // ranks.world_size
    now = choose_micro_rows(config, ranks.world_size)
    fewer = [n for n in range(1, min(rows, now)) if rows % n == 0]
    if fewer:
        ways.append(f"data.micro_rows={fewer[-1]}, which computes fewer rows at once (now {now})")
    if not trainer.activation_checkpointing:
        ways.append("trainer.activation_checkpointing=true, which computes each block twice and keeps less")
    if trainer.precision != "bf16":
        ways.append("trainer.precision=bf16, in a new run: it changes the numbers")
    if ranks.world_size > 1 and trainer.strategy in ("auto", "ddp"):
        ways.append("trainer.strategy=fsdp2, which spreads weights and moments over the ranks")
    if not ways:
        return "start on GPUs with more memory, or on more of them"
    return "; or ".join(["set " + ways[0], *ways[1:]])

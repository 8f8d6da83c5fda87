"""What a training step and a checkpoint ask of a strategy, beyond what Lightning does.

Parallelism is applied to the model and is not part of it: gradients stay on the rank until the step's last micro-batch,
a clipped update leaves the weights alone where the gradient is not finite, and weights and optimizer state are saved
and loaded by all ranks together.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gm_train.checkpoint.find import BY_NAME, Checkpoint
from gm_train.checkpoint.state import load_by_name, save_by_name
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import Ranks

#: Weights, gradients and AdamW's two moments in float32.
BYTES_PER_PARAMETER = 16


class Steps:
    """What a training step and a checkpoint ask of a strategy; here as it is where every rank holds named tensors.

    A strategy derives from this class and from one of Lightning's.

    Args:
        ranks: this process among the others.
        clip: largest norm of the gradient, for engines that clip by themselves.

    Attributes:
        form: how `save` writes the state, as a checkpoint names it.
        needs_group: whether it needs a process group even on one rank.
        shards_weights: whether a rank holds a part of the weights only.
    """

    form = BY_NAME
    needs_group = False
    shards_weights = False

    def __init__(self, ranks: Ranks, clip: float) -> None:
        raise TypeError(f"{type(self).__name__} does not say how Lightning's strategy is made")

    @classmethod
    def state_bytes(cls, n_parameters: int, world_size: int) -> int:
        """Bytes of weights, gradients and moments, all float32, that a rank holds between two steps."""
        held = BYTES_PER_PARAMETER * n_parameters
        return -(-held // world_size) if cls.shards_weights else held

    def shard(self, model: GeneMamba) -> None:
        """Spread the model's parameters over the ranks, before its optimizer is built."""

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """A forward and backward pass inside adds to the gradients; the last one of a step sums them over ranks."""
        yield

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> float:
        """Clip the gradient to the norm `clip` and step the optimizer, unless the gradient is not finite.

        Returns:
            The norm of the whole gradient before clipping.
        """
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        value = float(norm)
        if math.isfinite(value):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value

    def is_finite(self, model: nn.Module) -> bool:
        """Whether the parameters that this rank holds are finite."""
        held = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
        return all(bool(part.isfinite().all()) for part in held)

    def save(self, folder: Path, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Write this rank's part of weights and optimizer state into a folder; all ranks together."""
        save_by_name(folder, model, optimizer)

    def load(self, checkpoint: Checkpoint, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Load weights and optimizer state in place; all ranks together. `refuse_other_form` tells what can be read."""
        load_by_name(checkpoint.state, model, optimizer)

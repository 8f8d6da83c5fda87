"""The interface of a strategy, beyond Lightning's own.

Parallelism is applied to the model and is not part of it. Gradients stay on the rank until the step's last micro-batch.
A clipped update does not change the weights if the gradient is not finite. All ranks together save and load weights and
optimizer state.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from gm_train.checkpoint.find import BY_NAME, Checkpoint
from gm_train.checkpoint.state import load_by_name, save_by_name
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import Ranks

#: Weights, gradients and AdamW's two moments in float32.
BYTES_PER_PARAMETER = 16


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of some tensors on one device are finite; the device is waited for once."""
    found = [tensor.isfinite().all() for tensor in tensors]
    return not found or bool(torch.stack(found).all())


class Steps:
    """What training steps and checkpoints need from a strategy.

    A strategy derives from this class and from one of Lightning's. The methods here are for strategies whose ranks hold
    parameters by name.

    Args:
        ranks: this process among the others.
        clip: largest norm of the gradient, for engines that clip it themselves.

    Attributes:
        form: the format of the state that `save` writes, as recorded in a checkpoint.
        shards_weights: whether a rank holds only a part of the weights.
        may_compile: whether blocks can be one graph each, so that they are compiled on GPUs unless a setting says no.
    """

    form = BY_NAME
    shards_weights = False
    may_compile = True

    def __init__(self, ranks: Ranks, clip: float) -> None:
        raise TypeError(f"{type(self).__name__} must define __init__ and call that of its Lightning strategy")

    @classmethod
    def compile_setting(cls, setting: bool | None) -> bool | None:
        """`trainer.compile` under this strategy: None only where blocks may be compiled."""
        return setting if setting is not None or cls.may_compile else False

    @classmethod
    def state_bytes(cls, n_parameters: int, world_size: int) -> int:
        """Bytes of weights, gradients and moments, all float32, that a rank holds between two steps."""
        held = BYTES_PER_PARAMETER * n_parameters
        return -(-held // world_size) if cls.shards_weights else held

    def shard(self, model: GeneMamba) -> None:
        """Spread the model's parameters over the ranks, before its optimizer is built."""

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Let the pass inside add to the gradients; the last pass of a step also sums them over the ranks.

        Args:
            model: as Lightning's strategy wraps or shards it.
            last: whether this is the last micro-batch of a step.
        """
        yield

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> Tensor:
        """Clip the gradient and step the optimizer; a gradient that is not finite changes nothing.

        With a fused optimizer the device decides that by itself; otherwise this waits for the norm.

        Args:
            model: whole or sharded.
            optimizer: of this rank's parameters.
            clip: largest norm of the whole gradient.

        Returns:
            The norm of the whole gradient before clipping: float32, a scalar on the device.
        """
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        is_finite = norm.isfinite()
        if optimizer.defaults["fused"]:
            # torch's optimizers read this attribute, which otherwise its GradScaler sets.
            optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif is_finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def is_finite(self, model: nn.Module) -> bool:
        """Whether the parameters that this rank holds are finite."""
        return all_finite(p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())

    def whole_weights(self, model: GeneMamba) -> dict[str, Tensor]:
        """Copy all weights to rank 0; all ranks call this together.

        Args:
            model: whole or sharded.

        Returns:
            On rank 0 the weights by the model's parameter names, on the CPU; nothing on the other ranks.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=options)
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def save(self, folder: Path, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Write this rank's part of the state; all ranks call this together.

        Args:
            folder: where the files go, the same on all ranks.
            model: the weights.
            optimizer: its state.
        """
        save_by_name(folder, model, optimizer)

    def load(self, checkpoint: Checkpoint, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Load the state in place; all ranks call this together.

        Args:
            checkpoint: one that `refuse_other_form` accepts.
            model: gets the weights.
            optimizer: gets its state.
        """
        load_by_name(checkpoint.state, model, optimizer)

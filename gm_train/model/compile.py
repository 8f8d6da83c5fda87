"""Compilation and activation checkpointing of a model's blocks; neither changes what they compute."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gm_train.config.schema import TrainerConfig
from gm_train.model.genemamba import GeneMamba


def prepare_blocks(model: GeneMamba, trainer: TrainerConfig) -> None:
    """Compile each block, and recompute its activations in the backward pass, as `trainer` says.

    Only the blocks' `forward` is replaced, so parameters keep their names, and the hooks with which FSDP2 gathers a
    block's weights run outside of it. DeepSpeed's gather those of a block's parts within it, where the compiler stops.
    Blocks share their compiled code.

    Args:
        model: the model, not yet sharded.
        trainer: `compile` and `activation_checkpointing` are read.
    """
    # PyTorch's compiler triggers this warning about its own code.
    warnings.filterwarnings("ignore", message=".*_prims_common.check.*", category=FutureWarning)
    for block in model.stack.layers:
        kernels_on = getattr(block, "kernels_on", ())
        if compiles(trainer.compile, "cuda", kernels_on):
            # Under DDP the compiler would cut a block into pieces that end where a bucket of gradients does. The
            # backward pass of a block is short, so buckets are sent early enough without.
            torch._dynamo.config.optimize_ddp = False
            # All rows have the same length, and code for dynamic shapes would be slower. Only the last batch of a
            # validation may have fewer rows; it is compiled separately.
            compiled = torch.compile(block.forward, dynamic=False)
            block.forward = compiled if trainer.compile else _compiled_on_gpus(block.forward, compiled)
        if trainer.activation_checkpointing:
            # Blocks draw no random numbers.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compiles(setting: bool | None, device: str, kernels_on: tuple[str, ...]) -> bool:
    """Whether blocks are compiled on a device.

    Args:
        setting: `trainer.compile`.
        device: type of the device.
        kernels_on: types of device on which kernels compute a block, so that it is one graph.
    """
    return setting if setting is not None else device == "cuda" and device in kernels_on


def _compiled_on_gpus(plain: Callable[..., Tensor], compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The compiled code of a block on GPUs, and the plain one elsewhere."""

    def forward(x: Tensor, *args: Any) -> Tensor:
        return (compiled if x.device.type == "cuda" else plain)(x, *args)

    return forward

"""Compilation and activation checkpointing of a model's blocks; neither changes what they compute."""

import warnings
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from gm_train.config.schema import TrainerConfig
from gm_train.model.genemamba import GeneMamba


def prepare_blocks(model: GeneMamba, trainer: TrainerConfig) -> None:
    """Compile each block, and recompute its activations in the backward pass, as `trainer` says.

    Only the blocks' `forward` is replaced, so parameters keep their names, and the hooks with which a sharded strategy
    gathers a block's weights run outside of it. Blocks share their compiled code.

    Args:
        model: the model, not yet sharded.
        trainer: `compile` and `activation_checkpointing` are read.
    """
    # PyTorch's compiler triggers this warning about its own code.
    warnings.filterwarnings("ignore", message=".*_prims_common.check.*", category=FutureWarning)
    if trainer.compile:
        # Otherwise DDP would cut a block's graph where a gradient bucket is full. Backward passes of blocks are already
        # short enough for sums over the ranks to overlap with them.
        torch._dynamo.config.optimize_ddp = False
    for block in model.stack.layers:
        if trainer.compile:
            # All rows have the same length, and code for dynamic shapes would be slower. Only the last batch of a
            # validation may have fewer rows; it is compiled separately.
            block.forward = torch.compile(block.forward, dynamic=False)
        if trainer.activation_checkpointing:
            # Blocks draw no random numbers.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)

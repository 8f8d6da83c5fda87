"""What may be done to a model's blocks without changing what they compute: compilation, activation checkpointing."""

import warnings
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from gm_train.config.schema import TrainerConfig
from gm_train.model.genemamba import GeneMamba


def prepare_blocks(model: GeneMamba, trainer: TrainerConfig) -> None:
    """Compile each block, or compute its inside once more for the gradient, as `trainer` says.

    It is the blocks' `forward` that is replaced: parameters keep their names, and hooks by which a sharded strategy
    gathers a block's weights run outside of it, before and after. Blocks share their compiled code.

    Args:
        model: before it is sharded.
        trainer: `compile` and `activation_checkpointing`.
    """
    # PyTorch's compiler warns of its own code.
    warnings.filterwarnings("ignore", message=".*_prims_common.check.*", category=FutureWarning)
    for block in model.stack.layers:
        if trainer.compile:
            # Rows have one length: with dynamic shapes the code would be slower. Only the last batch of a validation
            # may have fewer rows, and gets a version of its own.
            block.forward = torch.compile(block.forward, dynamic=False)
        if trainer.activation_checkpointing:
            # Nothing random happens in a block.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)

"""AdamW's parameter groups and the learning rate of a step."""

import math
import re
from typing import Any

import torch
from torch import nn

from gm_train.config.schema import OptimConfig

# Matched by name, because torch and the sharded engines drop attributes such as `_no_weight_decay`.
_NO_DECAY = re.compile(r"(^|\.)(A_log|D|dt_bias|bias|(\w*norm\w*)\.weight)$")


#: Key of a group whose learning rate is that of the step times this.
_FACTOR = "lr_factor"


def parameter_groups(model: nn.Module, config: OptimConfig, head_lr_factor: float = 1.0) -> list[dict[str, Any]]:
    """Make two groups: matrices, with weight decay, and A_log, D, dt_bias, biases and norms, without.

    A classifier has two such groups of its own. Groups without parameters are left out.

    Args:
        model: the model.
        config: of the optimizer.
        head_lr_factor: learning rate of the classifier / that of the rest.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for is_head in (False, True):
        own = [(name, parameter) for name, parameter in named if name.startswith("classifier.") == is_head]
        # Checkpoints hold the keys of a group: those of a model without a classifier must not change.
        more = {"lr": config.lr * head_lr_factor, _FACTOR: head_lr_factor} if is_head else {}
        for decays in (True, False):
            chosen = [parameter for name, parameter in own if bool(_NO_DECAY.search(name)) != decays]
            if chosen:
                groups.append({"params": chosen, "weight_decay": config.weight_decay if decays else 0.0, **more})
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of a step in every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_FACTOR, 1.0)


def build_optimizer(model: nn.Module, config: OptimConfig, head_lr_factor: float = 1.0) -> torch.optim.AdamW:
    """Make AdamW (arXiv 1711.05101) with the groups of `parameter_groups`."""
    return torch.optim.AdamW(
        parameter_groups(model, config, head_lr_factor),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=config.fused or None,  # None leaves the choice to PyTorch; False would rule out its fast versions
    )


def learning_rate(step: int, config: OptimConfig) -> float:
    """Compute the learning rate of a step: linear warm-up, half a cosine, then constant.

    Args:
        step: number of the step, from 0.
        config: `schedule_steps` must be set.
    """
    assert config.schedule_steps is not None
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, config.schedule_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    floor = config.lr * config.min_lr_ratio
    return floor + (config.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

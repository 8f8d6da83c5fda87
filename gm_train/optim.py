"""AdamW's parameter groups and the learning rate of a step."""

import math
import re

import torch
from torch import nn

from gm_train.config.schema import OptimConfig

# Matched by name, because torch and the sharded engines drop attributes such as `_no_weight_decay`.
_NO_DECAY = re.compile(r"(^|\.)(A_log|D|dt_bias|bias|(\w*norm\w*)\.weight)$")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Make two groups: matrices, with weight decay, and A_log, D, dt_bias, biases and norms, without."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in named if not _NO_DECAY.search(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if _NO_DECAY.search(name)], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Make AdamW (arXiv 1711.05101) with the groups of `parameter_groups`."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
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

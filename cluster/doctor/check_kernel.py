"""Check which kernel computes the model: on a GPU, the scan of mamba_ssm is run once, forward and backward."""

from collections.abc import Sequence

import torch

from cluster.doctor.checkup import Answer, Checkup, Level, Problems, differences, groups, where
from gm_train.config.schema import Config
from gm_train.model.kernels.scan_kernels import kernel_of


def check_kernel(checkup: Checkup, config: Config | None) -> None:
    """Report the kernel that ranks choose, and why; without a configuration, that of the default model in bf16."""
    if config is None:
        config = Config()
        config.trainer.precision = "bf16"
    device = checkup.ranks.device()
    answers = checkup.ask("kernel", lambda: kernel_of(config, device))
    if answers is None:
        return
    problems = kernel_problems(answers, device, config.model.kernel)
    kernel, why = answers[0].value
    checkup.conclude("kernel", "" if problems else f"{kernel} ({why})", problems)


def kernel_problems(answers: Sequence[Answer[tuple[str, str]]], device: torch.device, requested: str) -> Problems:
    """List ranks on GPUs that would compute with the slow kernel, and differences between ranks.

    Args:
        answers: kernel and reason of each rank.
        device: of this rank.
        requested: `model.kernel`.
    """
    problems: Problems = []
    if device.type == "cuda" and requested == "auto":
        slow = [one for one in answers if one.value[0] == "torch"]
        problems += [(Level.WARN, f"{where(who)}: {why}") for why, who in groups(slow, lambda value: value[1]).items()]
    if text := differences(answers, lambda value: value[0]):
        problems.append((Level.WARN, f"ranks choose different kernels: {text}: start all from one environment"))
    return problems

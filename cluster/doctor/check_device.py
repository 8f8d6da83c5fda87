"""Check the device of each rank: which GPU it is, who else uses it, and how much of its memory is taken."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cluster.doctor.checkup import Answer, Checkup, Level, Problems, amount, differences, groups, where
from data_shards.errors import DataError
from gm_train.config.schema import Config
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import device_memory

# Bytes of GPU memory that the CUDA context of this process may take itself; a generous limit.
_OWN_CONTEXT = 2 << 30


@dataclass(frozen=True)
class Device:
    """The device that a rank computes on.

    Attributes:
        name: the GPU's name; "CPU" without a GPU.
        memory: bytes of GPU memory; on a CPU the rank's share of the machine's memory.
        taken: bytes of GPU memory in use, including this process's own context.
        uuid: the GPU's UUID; empty on a CPU.
        index: the GPU's number among those that the rank sees.
        visible: number of GPUs that the rank sees.
        local_size: number of ranks on the node.
        software: versions of driver, CUDA and NCCL. On a CPU: why torch cannot use the GPU, if there is one.
    """

    name: str
    memory: int
    taken: int = 0
    uuid: str = ""
    index: int = 0
    visible: int = 0
    local_size: int = 1
    software: str = ""


def look(ranks: Ranks) -> Device:
    """Examine the device of this rank, and run a first kernel on it.

    Raises:
        DataError: the GPU computes a wrong result.
        RuntimeError: the GPU cannot compute; the message is CUDA's.
    """
    device = ranks.device()
    driver = _driver()
    if device.type != "cuda":
        return Device("CPU", device_memory(ranks), local_size=ranks.local_size, software=_why_no_gpu(driver))
    torch.cuda.set_device(device)
    free, total = torch.cuda.mem_get_info(device)
    if _three(device) != 3:
        raise DataError(f"GPU {device.index} computes a wrong sum: do not use this node (cluster.exclude)")
    properties = torch.cuda.get_device_properties(device)
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return Device(
        properties.name,
        total,
        total - free,
        str(getattr(properties, "uuid", "")),
        device.index or 0,
        torch.cuda.device_count(),
        ranks.local_size,
        f"driver {driver or 'unknown'}, CUDA {torch.version.cuda}, NCCL {nccl}",
    )


def _three(device: torch.device) -> float:
    return float(torch.ones(3, device=device).sum())


def _driver() -> str | None:
    """Return the version of NVIDIA's driver; None if nvidia-smi is missing or finds no GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _why_no_gpu(driver: str | None) -> str:
    if driver is None:
        return ""
    if torch.version.cuda is None:
        return (
            f"there is a GPU (driver {driver}), but torch {torch.__version__} has no CUDA support: install a CUDA build"
        )
    return (
        f"there is a GPU (driver {driver}), but torch (CUDA {torch.version.cuda}) cannot use it: does "
        "CUDA_VISIBLE_DEVICES hide it, or is the driver too old?"
    )


def check_device(checkup: Checkup, config: Config | None) -> None:
    """Check that every rank has a device of its own that works, and that the devices fit together."""
    answers = checkup.ask("device", lambda: look(checkup.ranks))
    if answers is None:
        return
    problems = device_problems(answers)
    if config is not None:
        problems += use_problems(answers, config.cluster.gpus_per_node if "SLURM_JOB_ID" in os.environ else 0)
    checkup.conclude("device", describe(answers), problems)


def describe(answers: Sequence[Answer[Device]]) -> str:
    """Describe the devices of all ranks in one line."""
    parts = [f"{len(who)} x {name}" for name, who in groups(answers, lambda device: device.name).items()]
    first = answers[0].value
    if first.name == "CPU":
        return f"{', '.join(parts)}, no GPU is visible: gloo; {amount(first.memory)} of memory a rank"
    visible = f" ({first.visible} visible on a node)" if first.visible > first.local_size else ""
    return f"{', '.join(parts)}{visible}, {amount(first.memory)} each; {first.software}"


def device_problems(answers: Sequence[Answer[Device]]) -> Problems:
    """List devices that cannot work or do not fit together."""
    on_cpu = [one for one in answers if one.value.name == "CPU"]
    problems: Problems = [
        (Level.WARN, f"{where(who)}: {text}") for text, who in groups(on_cpu, lambda d: d.software).items() if text
    ]
    if on_cpu:
        if len(on_cpu) < len(answers):
            text = "no GPU is visible, while other ranks have one: ask for GPUs on every node"
            problems.append((Level.FAIL, f"{where(on_cpu)}: {text}"))
        return problems
    problems += _shared(answers)
    if text := differences(answers, lambda device: device.name):
        problems.append((Level.WARN, f"different GPUs, and the slowest limits the speed: {text}"))
    if text := differences(answers, lambda device: device.software):
        problems.append((Level.WARN, f"different versions: {text}: start all ranks from one environment"))
    taken = [one for one in answers if one.value.taken > _OWN_CONTEXT]
    if taken:
        most = amount(max(one.value.taken for one in taken))
        problems.append((Level.WARN, f"{where(taken)}: up to {most} are taken already: `nvidia-smi` shows by whom"))
    return problems


def use_problems(answers: Sequence[Answer[Device]], gpus_wanted: int) -> Problems:
    """List GPUs that a run would leave idle, or would miss.

    Args:
        answers: the device of every rank.
        gpus_wanted: GPUs per node that the configuration requests from SLURM; 0 outside of a job.
    """
    if all(one.value.name == "CPU" for one in answers):
        text = f"cluster.gpus_per_node={gpus_wanted}, but no rank sees a GPU: ask srun for them, too"
        return [(Level.WARN, text)] if gpus_wanted else []
    idle = [one for one in answers if one.value.visible > one.value.local_size]
    if not idle:
        return []
    seen, used = idle[0].value.visible, idle[0].value.local_size
    return [(Level.WARN, f"{where(idle)}: {seen} GPUs are visible, {used} used: start a rank for each GPU")]


def _shared(answers: Sequence[Answer[Device]]) -> Problems:
    """List ranks of a node that use the same GPU."""
    users: dict[tuple[str, str], list[Answer[Device]]] = {}
    for one in answers:
        # Without a UUID, compare numbers. But if each task sees only one GPU, that always has number 0.
        device = one.value
        if device.uuid or device.visible > 1:
            users.setdefault((one.node, device.uuid or str(device.index)), []).append(one)
    return [
        (
            Level.FAIL,
            f"{where(who)} share GPU {who[0].value.index} ({who[0].value.visible} visible for "
            f"{who[0].value.local_size} ranks): start as many ranks on a node as it has GPUs, and let each see all",
        )
        for who in users.values()
        if len(who) > 1
    ]

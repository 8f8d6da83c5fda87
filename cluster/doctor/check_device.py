"""The device of each rank: which GPU, whose else, how much of it is taken."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cluster.doctor.checkup import Checkup, Level, Problems, Said, amount, differences, groups, where
from data_shards.errors import DataError
from gm_train.config.schema import Config
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import device_memory

# What the CUDA context of the asking process itself takes, generously.
_OWN_CONTEXT = 2 << 30


@dataclass(frozen=True)
class Device:
    """What a rank computes on.

    Attributes:
        name: of the GPU; "CPU" without one.
        memory: bytes of the GPU, or the rank's share of the machine's.
        taken: bytes of the GPU in use, this process's own context included.
        uuid: of the GPU; empty on a CPU.
        index: of the GPU among those that the rank sees.
        visible: GPUs that the rank sees.
        local_size: ranks on the node.
        software: versions of driver, CUDA and NCCL; on a CPU why there is no GPU, if something says that there is.
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
    """The device of this rank, after a first kernel on it.

    Raises:
        DataError: the GPU computes nonsense.
        RuntimeError: it does not compute at all, in CUDA's words.
    """
    device = ranks.device()
    driver = _driver()
    if device.type != "cuda":
        return Device("CPU", device_memory(ranks), local_size=ranks.local_size, software=_why_no_gpu(driver))
    torch.cuda.set_device(device)
    free, total = torch.cuda.mem_get_info(device)
    if _three(device) != 3:
        raise DataError(f"GPU {device.index} adds three ones to something else: leave this node out")
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
    """Version of NVIDIA's driver; None if its tool is missing or finds no GPU."""
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
            f"there is a GPU (driver {driver}), but torch {torch.__version__} was built without CUDA: install one with"
        )
    return (
        f"there is a GPU (driver {driver}), but torch (CUDA {torch.version.cuda}) cannot use it: does "
        "CUDA_VISIBLE_DEVICES hide it, or is the driver too old?"
    )


def check_device(checkup: Checkup, config: Config | None) -> None:
    said = checkup.ask("device", lambda: look(checkup.ranks))
    if said is None:
        return
    problems = device_problems(said)
    if config is not None:
        problems += use_problems(said, config.cluster.gpus_per_node if "SLURM_JOB_ID" in os.environ else 0)
    checkup.conclude("device", describe(said), problems)


def describe(said: Sequence[Said[Device]]) -> str:
    """The devices in a line."""
    parts = [f"{len(who)} x {name}" for name, who in groups(said, lambda device: device.name).items()]
    first = said[0].value
    if first.name == "CPU":
        return f"{', '.join(parts)}, no GPU is visible: gloo; {amount(first.memory)} of memory a rank"
    beside = f" ({first.visible} visible on a node)" if first.visible > first.local_size else ""
    return f"{', '.join(parts)}{beside}, {amount(first.memory)} each; {first.software}"


def device_problems(said: Sequence[Said[Device]]) -> Problems:
    """What in the devices of all ranks cannot work, or does not belong together."""
    on_cpu = [one for one in said if one.value.name == "CPU"]
    problems: Problems = [
        (Level.WARN, f"{where(who)}: {text}") for text, who in groups(on_cpu, lambda d: d.software).items() if text
    ]
    if on_cpu:
        if len(on_cpu) < len(said):
            text = "no GPU is visible, while other ranks have one: ask for GPUs on every node"
            problems.append((Level.FAIL, f"{where(on_cpu)}: {text}"))
        return problems
    problems += _shared(said)
    if text := differences(said, lambda device: device.name):
        problems.append((Level.WARN, f"different GPUs, of which the slowest sets the pace: {text}"))
    if text := differences(said, lambda device: device.software):
        problems.append((Level.WARN, f"different versions: {text}: start all ranks from one environment"))
    taken = [one for one in said if one.value.taken > _OWN_CONTEXT]
    if taken:
        most = amount(max(one.value.taken for one in taken))
        problems.append((Level.WARN, f"{where(taken)}: up to {most} are taken already: `nvidia-smi` shows by whom"))
    return problems


def use_problems(said: Sequence[Said[Device]], gpus_wanted: int) -> Problems:
    """GPUs that a run would leave idle, or miss.

    Args:
        said: the device of every rank.
        gpus_wanted: GPUs on each node that the configuration asks SLURM for; 0 where that does not matter.
    """
    if all(one.value.name == "CPU" for one in said):
        text = f"cluster.gpus_per_node={gpus_wanted}, but no rank sees a GPU: ask srun for them, too"
        return [(Level.WARN, text)] if gpus_wanted else []
    idle = [one for one in said if one.value.visible > one.value.local_size]
    if not idle:
        return []
    seen, used = idle[0].value.visible, idle[0].value.local_size
    return [(Level.WARN, f"{where(idle)}: {seen} GPUs are visible, {used} used: start a rank for each GPU")]


def _shared(said: Sequence[Said[Device]]) -> Problems:
    """Ranks of a node on the same GPU."""
    users: dict[tuple[str, str], list[Said[Device]]] = {}
    for one in said:
        # Without a UUID the number has to do, except where each task sees one GPU alone, always number 0.
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

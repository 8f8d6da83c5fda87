"""What a node has: packages and their versions, the strategies that they allow, and cores."""

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.doctor.checkup import Checkup, Level, Problems, Said, differences, groups, where
from data_shards.errors import DataError
from gm_train.config.schema import Config
from gm_train.run.provenance import git_revision
from gm_train.strategies.choose import refuse_without_deepspeed

# Ranks with different ones of these compute different things, or cannot talk to each other.
_PACKAGES = ("torch", "lightning", "deepspeed", "mamba-ssm", "tensorstore", "numpy")


def versions() -> dict[str, str]:
    """Versions of what a run depends on; "none" for a package that is not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found | {"gm-train": git_revision() or importlib.metadata.version("gm-train")}


def check_software(checkup: Checkup) -> None:
    said = checkup.ask("software", versions)
    if said is None:
        return
    problems = version_problems(said)
    measured = "" if problems else ", ".join(f"{name} {_short(version)}" for name, version in said[0].value.items())
    checkup.conclude("software", measured, problems)


def version_problems(said: Sequence[Said[dict[str, str]]]) -> Problems:
    """A warning for each package that is not the same on all ranks."""
    problems: Problems = []
    for package in said[0].value:
        if text := differences(said, lambda value, package=package: _short(value.get(package, "none"))):  # type: ignore[misc]
            problems.append((Level.WARN, f"{package} differs: {text}: start all ranks from one environment"))
    return problems


def _short(version: str) -> str:
    """A version as it is; of a git revision the first digits."""
    dirty = "+" if version.endswith("+") else ""
    digits = version.removesuffix("+")
    return digits[:12] + dirty if len(digits) == 40 else version


def check_strategies(checkup: Checkup) -> None:
    """Without a configuration: which strategies could be used."""

    def look() -> str:
        try:
            refuse_without_deepspeed("zero2 and zero3")
        except DataError as error:
            return f"ddp, fsdp2; not zero2, zero3: {error}"
        return "ddp, fsdp2, zero2, zero3"

    said = checkup.ask("strategies", look)
    if said is not None:
        checkup.conclude("strategies", said[0].value, [])


@dataclass(frozen=True)
class Cores:
    """The cores that a process may use, and those that SLURM was asked to give it."""

    allowed: frozenset[int]
    asked: int | None


def cores() -> Cores:
    asked = os.environ.get("SLURM_CPUS_PER_TASK")
    return Cores(frozenset(os.sched_getaffinity(0)), int(asked) if asked else None)


def cores_of_each(said: Sequence[Said[Cores]]) -> list[int]:
    """Cores of each rank: ranks of a node that may all use the same ones share them evenly."""
    found = []
    for one in said:
        sharers = sum(other.node == one.node and other.value.allowed == one.value.allowed for other in said)
        own = max(1, len(one.value.allowed) // sharers)
        found.append(min(own, one.value.asked or own))
    return found


def check_cores(checkup: Checkup, config: Config | None) -> None:
    said = checkup.ask("cores", cores)
    if said is None:
        return
    each = [Said(one.rank, one.node, n) for one, n in zip(said, cores_of_each(said), strict=True)]
    found = groups(each)
    measured = differences(each) or next(iter(found))
    problems: Problems = []
    if config is not None:
        # A rank has no more workers than lanes.
        workers = min(config.data.workers, max(1, config.data.lanes // checkup.ranks.world_size))
        few = [one for one in each if one.value < workers + 1]
        if few:
            problems.append(
                (
                    Level.WARN,
                    f"data.workers={config.data.workers} asks for {workers + 1} a rank, {where(few)} {_has(few)} "
                    f"fewer: set cluster.cpus_per_task={workers + 1} (srun wants --cpus-per-task as well), or lower "
                    "data.workers",
                )
            )
    checkup.conclude("cores", f"{measured} a rank" + (", if ranks share evenly" if len(said) > 1 else ""), problems)


def _has(ranks: Sequence[object]) -> str:
    return "has" if len(ranks) == 1 else "have"

"""Check the software of a node (versions, and the strategies that they allow) and its cores."""

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.doctor.checkup import Answer, Checkup, Level, Problems, differences, groups, where
from data_shards.errors import DataError
from gm_train.config.schema import Config
from gm_train.run.provenance import git_revision
from gm_train.strategies.choose import refuse_without_deepspeed

# Ranks with different versions of these compute different results, or cannot communicate.
_PACKAGES = ("torch", "lightning", "deepspeed", "mamba-ssm", "tensorstore", "numpy")


def versions() -> dict[str, str]:
    """Return the version of each package that a run depends on; "none" if it is not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found | {"gm-train": git_revision() or importlib.metadata.version("gm-train")}


def check_software(checkup: Checkup) -> None:
    """Check that all ranks have the same software."""
    answers = checkup.ask("software", versions)
    if answers is None:
        return
    problems = version_problems(answers)
    measured = "" if problems else ", ".join(f"{name} {_short(version)}" for name, version in answers[0].value.items())
    checkup.conclude("software", measured, problems)


def version_problems(answers: Sequence[Answer[dict[str, str]]]) -> Problems:
    """Return a warning for each package whose version differs between ranks."""
    problems: Problems = []
    for package in answers[0].value:
        if text := differences(answers, lambda value, package=package: _short(value.get(package, "none"))):  # type: ignore[misc]
            problems.append((Level.WARN, f"{package} differs: {text}: start all ranks from one environment"))
    return problems


def _short(version: str) -> str:
    """Shorten a git revision to its first 12 digits; keep any other version."""
    dirty = "+" if version.endswith("+") else ""
    digits = version.removesuffix("+")
    return digits[:12] + dirty if len(digits) == 40 else version


def check_strategies(checkup: Checkup) -> None:
    """Report which strategies could be used; for a call without a configuration."""

    def look() -> str:
        try:
            refuse_without_deepspeed("zero2 and zero3")
        except DataError as error:
            return f"ddp, fsdp2; not zero2, zero3: {error}"
        return "ddp, fsdp2, zero2, zero3"

    answers = checkup.ask("strategies", look)
    if answers is not None:
        checkup.conclude("strategies", answers[0].value, [])


@dataclass(frozen=True)
class Cores:
    """The cores of a process.

    Attributes:
        allowed: ids of the cores that it may use.
        asked: number of cores that SLURM was asked for; None outside of SLURM.
    """

    allowed: frozenset[int]
    asked: int | None


def cores() -> Cores:
    """Return the cores of this process."""
    asked = os.environ.get("SLURM_CPUS_PER_TASK")
    return Cores(frozenset(os.sched_getaffinity(0)), int(asked) if asked else None)


def cores_of_each(answers: Sequence[Answer[Cores]]) -> list[int]:
    """Return the number of cores of each rank. Ranks that may use the same cores share them evenly."""
    found = []
    for one in answers:
        sharers = sum(other.node == one.node and other.value.allowed == one.value.allowed for other in answers)
        own = max(1, len(one.value.allowed) // sharers)
        found.append(min(own, one.value.asked or own))
    return found


def check_cores(checkup: Checkup, config: Config | None) -> None:
    """Check that each rank has a core for itself and one for each of its loader workers."""
    answers = checkup.ask("cores", cores)
    if answers is None:
        return
    each = [Answer(one.rank, one.node, n) for one, n in zip(answers, cores_of_each(answers), strict=True)]
    found = groups(each)
    measured = differences(each) or next(iter(found))
    problems: Problems = []
    if config is not None:
        # A rank has at most as many workers as lanes.
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
    checkup.conclude("cores", f"{measured} a rank" + (", if ranks share evenly" if len(answers) > 1 else ""), problems)


def _has(ranks: Sequence[object]) -> str:
    return "has" if len(ranks) == 1 else "have"

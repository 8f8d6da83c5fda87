"""Fill a folder of wheels for `make gpu`, on a machine with internet: `python -m gm_train.bench.offline.wheels`.

The versions are those of the environment that runs this, which are tested. PyTorch is never among them.
"""

import argparse
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gm_train.bench.offline.environment import LEFT_OUT, mamba_requirement, plain_name, requirements

#: pip matches the number of a platform exactly.
_PLATFORMS = [f"manylinux_2_{number}_x86_64" for number in (35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def all_requirements(wanted: Sequence[str], python_version: str) -> dict[str, SpecifierSet]:
    """Return the packages that requirements need in the end, and what is asked of the version of each.

    Args:
        wanted: requirements that begin it.
        python_version: of the machine with the GPU, such as "3.12".
    """
    machine = {
        "python_version": python_version, "python_full_version": f"{python_version}.0", "sys_platform": "linux",
        "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix", "extra": "",
    }  # fmt: skip
    asked: dict[str, SpecifierSet] = {}
    left = [Requirement(text) for text in wanted]
    seen: set[str] = set()
    while left:
        requirement = left.pop()
        name = plain_name(requirement.name)
        if name in LEFT_OUT or str(requirement) in seen:
            continue
        seen.add(str(requirement))
        extras = ["", *requirement.extras]
        if requirement.marker and not requirement.marker.evaluate(machine):
            continue
        asked[name] = asked.get(name, SpecifierSet()) & requirement.specifier
        for text in importlib.metadata.requires(requirement.name) or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate(machine | {"extra": extra}) for extra in extras):
                inner.marker = None
                left.append(inner)
    return asked


def missing(asked: dict[str, SpecifierSet], has: Sequence[str]) -> dict[str, str]:
    """Return the packages that a machine lacks, with the versions installed here.

    Args:
        asked: packages and what is asked of their versions.
        has: what the machine has, as `pip list --format=freeze` prints it; a name without a version counts if any
            newer version suffices.
    """
    there: dict[str, str | None] = {}
    for line in has:
        name, _, version = line.strip().partition("==")
        if name and not name.startswith("#"):
            there[plain_name(name)] = version or None

    def suffices(name: str, specifiers: SpecifierSet) -> bool:
        if name not in there:
            return False
        version = there[name]
        if version is None:
            return all(specifier.operator in (">=", ">", "!=") for specifier in specifiers)
        return specifiers.contains(version, prereleases=True)

    return {
        name: importlib.metadata.version(name)
        for name, specifiers in sorted(asked.items())
        if not suffices(name, specifiers)
    }


def fill(folder: Path, packages: dict[str, str], python_version: str) -> None:
    """Download the wheels of packages, and build that of mamba-ssm without its compiled code.

    Raises:
        SystemExit: pip failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    machine = ["--implementation", "cp", "--python-version", python_version, *platforms]
    pinned = [f"{name}=={version}" for name, version in packages.items()]
    download = [*pip, "download", "--no-deps", "--only-binary=:all:", *machine, "--dest", str(folder), *pinned]
    # The build would otherwise look for nvcc, and for a wheel with compiled code on the internet.
    plain = os.environ | {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", str(folder)]
    commands = [(download, dict(os.environ))] if pinned else []
    for command, environment in [*commands, ([*build, mamba_requirement()], plain)]:
        if subprocess.run(command, env=environment).returncode:
            sys.exit(f"error: pip failed, see above; {folder} is not complete")


def main(words: Sequence[str]) -> None:
    """Fill the folder that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m gm_train.bench.offline.wheels", description=__doc__)
    parser.add_argument("--into", type=Path, required=True, help="folder for the wheels")
    parser.add_argument("--python-version", default="3.12", help="of the machine with the GPU (%(default)s)")
    parser.add_argument("--has", type=Path, help="what it has already: the output of pip list --format=freeze there")
    arguments = parser.parse_args(words)
    has = arguments.has.read_text().splitlines() if arguments.has else []
    packages = missing(all_requirements(requirements(), arguments.python_version), has)
    fill(arguments.into, packages, arguments.python_version)
    print(f"written: {len(packages) + 1} wheels in {arguments.into}")


if __name__ == "__main__":
    main(sys.argv[1:])

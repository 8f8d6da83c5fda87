"""Make an environment for `make gpu` without internet: `python3 -m gm_train.bench.offline.environment`.

PyTorch is that of the Python which runs this; whatever else gm-train needs and that Python lacks comes from a folder of
wheels, which `wheels.py` fills. Only the standard library is imported here, since nothing else may be installed yet.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
#: Packages that are never installed: PyTorch comes with its Triton, and nothing is tracked here.
LEFT_OUT = ("torch", "triton", "mlflow")
_MAMBA = "mamba-ssm"
_OLDEST_TORCH = (2, 11)


def plain_name(requirement: str) -> str:
    """Return the normalized name of the package that a requirement is for."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", found.group()).lower() if found else ""


def requirements(root: Path = ROOT) -> list[str]:
    """Return what gm-train requires on a GPU, except for `LEFT_OUT` and mamba-ssm."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cuda"]]
    return [requirement for requirement in wanted if plain_name(requirement) not in LEFT_OUT]


def mamba_requirement(root: Path = ROOT) -> str:
    """Return the requirement of mamba-ssm with its version, as `constraints.txt` pins it."""
    lines = (root / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if plain_name(line) == _MAMBA)


def torch_problem(version: str | None) -> str | None:
    """Return why a version of PyTorch does not suffice, or None if it does; None means that there is none."""
    need = "`make gpu` needs PyTorch 2.11 or newer with CUDA in it; GPU_PYTHON=PATH names another Python"
    if version is None:
        return f"{sys.executable} has no PyTorch: {need}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return None if numbers >= _OLDEST_TORCH else f"{sys.executable} has PyTorch {version}: {need}"


def make_environment(folder: Path, wheels: Path, wanted: Sequence[str], alone: Sequence[str]) -> None:
    """Make a virtual environment that sees the packages of this Python, and install what is missing from wheels.

    Args:
        folder: of the environment; completed if it exists.
        wheels: folder of wheels.
        wanted: requirements, installed with what they require.
        alone: requirements that are installed without what they require.

    Raises:
        SystemExit: something is missing in the folder of wheels; the message names the way out.
    """
    venv.EnvBuilder(system_site_packages=True, symlinks=True).create(folder)
    python = folder / "bin" / "python"
    # Where this Python belongs to a virtual environment itself, system_site_packages would skip that environment.
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "gpu-machine.pth").write_text("\n".join([*seen, str(ROOT)]) + "\n")
    fixed = folder / "fixed.txt"
    fixed.write_text(f"torch=={importlib.metadata.version('torch')}\n")
    offline = ["--no-index", "--find-links", str(wheels), "--disable-pip-version-check", "--quiet"]
    for options, packages in ((["--constraint", str(fixed)], wanted), (["--no-deps"], alone)):
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", *offline, *options, *packages]
        if packages and subprocess.run(command).returncode:
            sys.exit(
                f"error: a package is missing: see above. `make gpu-wheels` on a machine with internet fills a folder; "
                f"bring it here as {wheels}, or name another one with WHEELS=FOLDER"
            )


def main(words: Sequence[str]) -> None:
    """Make the environment that the arguments describe."""
    parser = argparse.ArgumentParser(prog="python3 -m gm_train.bench.offline.environment", description=__doc__)
    parser.add_argument("--wheels", type=Path, required=True, help="folder of wheels")
    parser.add_argument("--into", type=Path, required=True, help="folder of the environment")
    arguments = parser.parse_args(words)
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if problem := torch_problem(version):
        sys.exit(f"error: {problem}")
    make_environment(arguments.into, arguments.wheels, requirements(), [mamba_requirement()])


if __name__ == "__main__":
    main(sys.argv[1:])

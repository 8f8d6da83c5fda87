"""The environment of `make gpu`: PyTorch is the machine's own, everything else comes from a folder of wheels."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from gm_train.bench.offline import environment, wheels

ROOT = environment.ROOT


def write_wheel(folder: Path, name: str, requires: str = "") -> None:
    """Write a wheel of version 1.0 with one module."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "VALUE = 7\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            file.writestr(path, text)


def test_what_is_missing_comes_from_wheels_and_torch_from_the_machine(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "gm_fake_one", requires="torch>=2")
    write_wheel(tmp_path / "wheels", "gm_fake_two", requires="not-in-the-folder")
    folder = tmp_path / "made"
    environment.make_environment(folder, tmp_path / "wheels", ["gm-fake-one>=1", "numpy"], ["gm-fake-two==1.0"])
    code = (
        "import gm_fake_one, gm_fake_two, gm_train, importlib.util as u; "
        "print(gm_fake_one.VALUE + gm_fake_two.VALUE, u.find_spec('torch').origin, gm_train.__file__, sep='\\n')"
    )
    done = subprocess.run([folder / "bin" / "python", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert done.stdout.split() == ["14", str(spec.origin), str(ROOT / "gm_train" / "__init__.py")]


def test_a_package_that_is_nowhere_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(SystemExit, match="`make gpu-wheels` on a machine with internet fills a folder"):
        environment.make_environment(tmp_path / "made", tmp_path / "wheels", ["gm-fake-three"], [])


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        (None, "has no PyTorch"),
        ("2.10.1+cu128", "has PyTorch 2.10.1"),
        ("2.11.0+cu130", None),
        ("3.0", None),
    ],
)
def test_an_old_pytorch_or_none_is_refused(version: str | None, problem: str | None) -> None:
    found = environment.torch_problem(version)
    assert (found is None) == (problem is None)
    assert problem is None or (problem in str(found) and "GPU_PYTHON" in str(found))


def test_the_environment_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from gm_train.bench.offline.environment import requirements; print(len(requirements()))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_torch_and_the_tracker_are_never_among_the_wheels() -> None:
    asked = wheels.all_requirements(environment.requirements(), "3.12")
    assert {"lightning", "zarr", "tensorstore", "omegaconf", "anndata", "numcodecs", "einops"} <= set(asked)
    assert not set(asked) & {"torch", "triton", "mlflow", "flask"}
    assert not any(name.startswith("nvidia") for name in asked)
    assert environment.mamba_requirement().startswith("mamba-ssm==")


def test_what_a_machine_has_is_left_out_if_its_version_suffices() -> None:
    asked = {
        "numpy": SpecifierSet(">=2.0"), "pandas": SpecifierSet(">=2.2,<3"), "zarr": SpecifierSet("==3.1.6"),
        "h5py": SpecifierSet(">=3.12"), "scipy": SpecifierSet(">=1.13"), "torchmetrics": SpecifierSet(">0.7.0,<3"),
    }  # fmt: skip
    has = ["NumPy==2.5.2", "pandas==3.0.1", "zarr", "h5py", "torchmetrics", "# a remark", ""]
    found = wheels.missing(asked, has)
    assert set(found) == {"pandas", "zarr", "scipy", "torchmetrics"}
    assert found["zarr"] == importlib.metadata.version("zarr")

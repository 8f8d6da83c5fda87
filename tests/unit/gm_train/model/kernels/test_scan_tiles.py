"""Each kernel of mamba_ssm's scan has one tile size, which a GPU can run, and the small scan compiles all of them.

The kernels are compiled for GPUs that are not there (`tests/support/compile_ahead.py`), in a process of their own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gm_train.model.kernels import conv_kernels, norm_kernels, scan_tiles

ROOT = Path(__file__).parents[5]

pytestmark = pytest.mark.skipif(
    "CI" not in os.environ and any(importlib.util.find_spec(name) is None for name in ("mamba_ssm", "triton")),
    reason="mamba_ssm and triton not installed: `make setup` does",
)


def compiled(tmp_path: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.compile_ahead", *words]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_another_version_of_the_package_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scan_tiles, "version", lambda name: "2.4.0")
    monkeypatch.setattr(scan_tiles, "_tuners", lambda: pytest.fail("must not be touched"))
    scan_tiles.fix_tiles()
    assert "mamba_ssm 2.4.0 is not the tested version, 2.3.2.post1" in caplog.text


def test_the_version_is_the_pinned_one() -> None:
    assert f"mamba-ssm=={scan_tiles.VERSION}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype"), [(80, "bfloat16"), (90, "bfloat16"), (90, "float32")])
def test_the_set_that_a_start_compiles(capability: int, dtype: str, tmp_path: Path) -> None:
    """14 kernels in one configuration each; two of them are compiled for two sets of arguments."""
    found = compiled(tmp_path, "--capability", str(capability), "--dtype", dtype)
    assert found["tried"] == dict.fromkeys(scan_tiles.TILES, 1)
    kernels = [one["kernel"] for one in found["compiled"]]
    assert set(kernels) == set(scan_tiles.TILES)
    assert len(kernels) <= 16
    # Two blocks fit on a multiprocessor of an A100 (164 KB), and one on the GPUs of capability 8.6 and 8.9 (99 KB).
    assert {one["kernel"]: one["shared"] for one in found["compiled"] if one["shared"] > 83_000} == {}
    if dtype == "bfloat16":
        assert {one["kernel"]: one["stack"] for one in found["compiled"] if one["stack"] > 16} == {}


@pytest.mark.slow
def test_the_small_scan_compiles_what_a_layer_runs(tmp_path: Path) -> None:
    """Three kernels are compiled once more: a block of them takes several heads where there are many blocks.

    A layer also has our own kernels, each in one configuration.
    """
    found = compiled(tmp_path, "--layer")
    several_heads = {"_chunk_state_bwd_db_kernel", "_chunk_scan_bwd_dc_kernel", "_chunk_scan_bwd_dcb_kernel"}
    ours = {name for module in (conv_kernels, norm_kernels) for name in vars(module) if name.endswith("_kernel")}
    assert len(ours) == 5
    added = [one["kernel"] for one in found["layer_adds"]]
    assert set(added) <= several_heads | ours
    assert len([name for name in added if name not in ours]) <= 3
    assert all(added.count(name) <= 1 for name in ours)

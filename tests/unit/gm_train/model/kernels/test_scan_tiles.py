"""Each kernel has one tile size, which a GPU can run, and the check before the first step compiles a layer's kernels.

The kernels are compiled for GPUs that are not there (`tests/support/compile_ahead.py`), in a process of their own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gm_train.model.kernels import conv_kernels, gate_kernels, norm_kernels, scan_tiles, step_kernels

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


def test_the_version_is_the_pinned_one() -> None:
    assert f"mamba-ssm=={scan_tiles.VERSION}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype", "arch", "aggregation"),
    [
        (80, "bfloat16", "bimamba", "gate"),
        (90, "bfloat16", "bimamba", "gate"),
        (90, "float32", "bimamba", "gate"),
        (90, "bfloat16", "bimamba", "head_gate"),
        (90, "bfloat16", "mamba", "gate"),
    ],
)
def test_what_a_start_compiles(capability: int, dtype: str, arch: str, aggregation: str, tmp_path: Path) -> None:
    """Each kernel once or twice, before the first step; the step itself then compiles only the gate's."""
    words = ["--capability", str(capability), "--dtype", dtype, "--arch", arch, "--aggregation", aggregation]
    found = compiled(tmp_path, *words)
    kernels = [one["kernel"] for one in found["compiled"]]
    ours = {name for module in (conv_kernels, norm_kernels, step_kernels) for name in own(module)}
    assert len(ours) == 6
    # The gradients of B and C are products with an array and with its transpose.
    assert sorted(kernels) == sorted([*ours, *scan_tiles.TILES, "_bmm_chunk_bwd_kernel"])
    gate = own(gate_kernels) if (arch, aggregation) == ("bimamba", "gate") else set()
    assert sorted(one["kernel"] for one in found["layer_adds"]) == sorted(gate)
    both = found["compiled"] + found["layer_adds"]
    # Two blocks fit on a multiprocessor of an A100 (164 KB), and one on the GPUs of capability 8.6 and 8.9 (99 KB).
    assert {one["kernel"]: one["shared"] for one in both if one["shared"] > 83_000} == {}
    if dtype == "bfloat16":
        assert {one["kernel"]: one["stack"] for one in both if one["stack"] > 16} == {}


def own(module: ModuleType) -> set[str]:
    return {name for name in vars(module) if name.endswith("_kernel")}

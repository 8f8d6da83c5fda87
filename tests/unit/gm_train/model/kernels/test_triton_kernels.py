"""Our Triton kernels: outputs and all gradients against float64, and their registration with PyTorch.

`tests/support/kernels_on_cpu.py` runs them under Triton's interpreter, in a process of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

#: Largest relative errors. In bf16, results are rounded, and no sum is.
TOLERANCES = {"fp32": 1e-6, "bf16": 5e-3}


def interpreted(module: str, package: str) -> dict[str, Any]:
    """What a module of `tests/support` prints under Triton's interpreter; skips without a package."""
    if importlib.util.find_spec(package) is None:
        assert "CI" not in os.environ
        pytest.skip(f"{package} is not installed: `make setup` does")
    command = [sys.executable, "-m", f"tests.support.{module}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return interpreted("kernels_on_cpu", "triton")


def test_outputs_and_gradients_equal_float64(measured: dict[str, Any]) -> None:
    assert len(measured["errors"]) == 34
    for case, errors in measured["errors"].items():
        assert {what: error for what, error in errors.items() if not error < TOLERANCES[case[-4:]]} == {}, case


def test_a_compiled_block_is_one_graph_with_the_same_results(measured: dict[str, Any]) -> None:
    """Under autocast as in a step, and in fp32; two blocks share the graph."""
    assert {case: found["graphs"] for case, found in measured["compiled"].items()} == {
        "gate, bf16": 1,
        "head_gate, fp32": 1,
    }
    assert all(found["error"] < 1e-6 for found in measured["compiled"].values())


def test_convolution_and_scan_equal_those_of_flash_linear_attention() -> None:
    """In bf16, what we compare with is rounded as well: each is up to 5e-3 from float64."""
    found = interpreted("beside_fla", "fla")
    assert len(found) == 8
    for case, errors in found.items():
        limit = 1e-6 if case.endswith("fp32") else 1e-2 if case.startswith("scan") else 5e-3
        assert {what: error for what, error in errors.items() if not error < limit} == {}, case

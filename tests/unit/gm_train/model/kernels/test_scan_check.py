"""The small scan that is run before a kernel is trusted: right results pass, wrong ones and errors are named."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_train.model.kernels.scan_check import Mix, ScanSizes, mix_in_pytorch, scan_problem

CPU = torch.device("cpu")
SIZES = ScanSizes(2, 16, 8)


def right(columns: Tensor, cells: Tensor, *parameters: Any) -> Tensor:
    assert cells.dtype == torch.int32
    with torch.autocast("cpu", torch.bfloat16, enabled=columns.dtype == torch.bfloat16):
        return mix_in_pytorch(columns, cells, *parameters)


def across_cells(columns: Tensor, cells: Tensor, *parameters: Any) -> Tensor:
    return right(columns, torch.ones_like(cells), *parameters)


def without_gradient_of_D(*inputs: Any) -> Tensor:
    D = inputs[6]
    return right(*inputs[:6], D.detach() + 0 * D, *inputs[7:])


def nan(*inputs: Any) -> Tensor:
    return right(*inputs) * torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [SIZES, ScanSizes(2, 16, 8, 3, 1), ScanSizes(3, 8, 4, 4, 2, head_gate=True)])
def test_a_right_scan_passes(sizes: ScanSizes, dtype: torch.dtype) -> None:
    assert scan_problem(lambda: right, sizes, 64, CPU, dtype) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scan", "named"), [(across_cells, "y by"), (without_gradient_of_D, "(dD by 1)"), (nan, "y by nan")]
)
def test_a_wrong_scan_is_named(scan: Mix, named: str, dtype: torch.dtype) -> None:
    problem = scan_problem(lambda: scan, SIZES, 64, CPU, dtype)
    assert problem is not None
    assert problem.startswith("computes other numbers than PyTorch here (")
    assert named in problem


@pytest.mark.parametrize(
    ("error", "text", "hint"),
    [
        (RuntimeError("Failed to find C compiler.\nmore"), "RuntimeError: Failed to find C compiler.", True),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), "CalledProcessError: Command", True),
        (torch.OutOfMemoryError("CUDA out of memory."), "OutOfMemoryError: CUDA out of memory.", False),
        (AssertionError(), "AssertionError", False),
    ],
)
def test_an_error_becomes_one_line(error: Exception, text: str, hint: bool) -> None:
    def fail(*_: Tensor) -> Tensor:
        raise error

    problem = scan_problem(lambda: fail, SIZES, 64, CPU)
    assert problem is not None
    assert problem.startswith(f"cannot run here ({text}")
    assert ("Python's headers" in problem) == hint
    assert "\n" not in problem


def test_it_works_wherever_a_model_is_built_and_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"), torch.inference_mode():
        assert scan_problem(lambda: right, SIZES, 64, CPU, torch.float32) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_package_passes_under_tritons_interpreter() -> None:
    """With the tile sizes that it has on a GPU."""
    for package in ("mamba_ssm", "triton"):
        if "CI" not in os.environ:
            pytest.importorskip(package)
    command = [sys.executable, "-m", "tests.support.triton_on_cpu", "check"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [None, None]

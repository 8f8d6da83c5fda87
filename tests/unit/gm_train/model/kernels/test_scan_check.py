"""The small scan that is run before a kernel is trusted: right results pass, wrong ones and errors are named."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from gm_train.model.kernels.scan_check import Scan, ScanSizes, scan_problem
from gm_train.model.segments import make_segments
from gm_train.model.ssd import ssd

CPU = torch.device("cpu")
SIZES = ScanSizes(2, 16, 8)


def right(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor) -> Tensor:
    assert seq_idx.dtype == torch.int32
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        return ssd(x, dt, A, B, C, D, make_segments(seq_idx, 16, 1))


def across_cells(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor) -> Tensor:
    return right(x, dt, A, B, C, D, torch.ones_like(seq_idx))


def without_gradient_of_dt(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq: Tensor) -> Tensor:
    return right(x, dt.detach() + 0 * dt, A, B, C, D, seq)


def nan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, seq_idx: Tensor) -> Tensor:
    return right(x, dt, A, B, C, D, seq_idx) * torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_scan_passes(dtype: torch.dtype) -> None:
    assert scan_problem(right, SIZES, 64, CPU, dtype) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scan", "named"), [(across_cells, "y by"), (without_gradient_of_dt, "(ddt by 1)"), (nan, "y by nan")]
)
def test_a_wrong_scan_is_named(scan: Scan, named: str, dtype: torch.dtype) -> None:
    problem = scan_problem(scan, SIZES, 64, CPU, dtype)
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

    problem = scan_problem(fail, SIZES, 64, CPU)
    assert problem is not None
    assert problem.startswith(f"cannot run here ({text}")
    assert ("Python's headers" in problem) == hint
    assert "\n" not in problem


def test_it_works_wherever_a_model_is_built_and_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"), torch.inference_mode():
        assert scan_problem(right, SIZES, 64, CPU, torch.float32) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_package_passes_under_tritons_interpreter() -> None:
    """With the tile sizes that it has on a GPU."""
    for package in ("mamba_ssm", "triton"):
        if "CI" not in os.environ:
            pytest.importorskip(package)
    command = [sys.executable, "-m", "tests.support.triton_on_cpu", "check"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [None, None]

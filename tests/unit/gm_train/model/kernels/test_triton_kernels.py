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


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    if importlib.util.find_spec("triton") is None:
        assert "CI" not in os.environ
        pytest.skip("triton is not installed: `make setup` does")
    command = [sys.executable, "-m", "tests.support.kernels_on_cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_outputs_and_gradients_equal_float64(measured: dict[str, Any]) -> None:
    assert len(measured["errors"]) == 24
    for case, errors in measured["errors"].items():
        assert {what: error for what, error in errors.items() if not error < TOLERANCES[case[-4:]]} == {}, case


def test_a_compiled_norm_is_one_graph_with_the_same_results(measured: dict[str, Any]) -> None:
    assert measured["compiled"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernels_compile_for_sm_90(dtype: str, two: bool) -> None:
    """Ahead of time, at the sizes of the presets: the interpreter takes more than the compiler does."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gm_train.model.kernels import conv_kernels, norm_kernels

    fixed = {"weight": "*fp32", "bias": "*fp32", "cells": "*i32", "d_weight": "*fp32", "d_taps": "*fp32", "eps": "fp32"}
    numbers = ("width", "length", "rows", "rows_each")
    tile = {"TAPS": 4, "TOKENS": conv_kernels.TOKENS, "CHANNELS": conv_kernels.CHANNELS, "TWO": two}
    options = norm_kernels._options(1024)
    row = {"BLOCK": options.pop("BLOCK"), "TWO": two}
    kernels = [
        (norm_kernels._gated_norm_forward_kernel, row, options),
        (norm_kernels._gated_norm_backward_kernel, row, options),
        (conv_kernels._conv_forward_kernel, tile, {"num_warps": conv_kernels.WARPS}),
        (conv_kernels._conv_backward_taps_kernel, tile, {"num_warps": conv_kernels.WARPS}),
        (conv_kernels._conv_backward_x_kernel, tile, {"num_warps": conv_kernels.WARPS}),
    ]
    for kernel, constants, chosen in kernels:
        names = kernel.arg_names
        signature = {
            name: "constexpr"
            if name in constants
            else fixed.get(name) or ("i32" if name in numbers or "stride" in name else f"*{dtype}")
            for name in names
        }
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=chosen)
        assert len(compiled.asm["cubin"]) > 0
        assert compiled.metadata.shared < 227 * 1024  # an H100's shared memory of a block

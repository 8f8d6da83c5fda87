"""Run mamba_ssm's kernels on the CPU with Triton's interpreter; `python -m tests.support.triton_on_cpu` prints errors.

With the word `check` it prints instead what `scan_problem` says of the package's scan, in bfloat16 and float32.

`parity.py` starts this in its own process: TRITON_INTERPRET must be set before anything imports triton. The interpreter
keeps bfloat16 as bits: it truncates float32 where a GPU rounds to nearest, and it multiplies the bits themselves in a
matrix product. Both are fixed here; any other operation that would compute on the bits is refused.
"""

import contextlib
import json
import sys
import types
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from gm_train.model.kernels import scan_kernels
from gm_train.model.kernels.scan_check import ScanSizes, scan_problem
from tests.support.parity import SMALL, measure


def patch() -> None:
    """Patch torch and Triton so that mamba_ssm runs on CPU tensors."""
    torch.cuda.device = lambda index: contextlib.nullcontext()  # type: ignore[assignment,misc]
    torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=1)  # type: ignore[assignment]
    builder = interpreter.InterpreterBuilder
    cast, dot, binary = builder.cast_impl, builder.create_dot, builder.binary_op

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        types_ = source.dtype.scalar, to.scalar
        if types_ == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_narrow(source.data), tl.bfloat16)
        if types_ == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_widen(source.data), tl.float32)
        return cast(self, source, to)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        wide = [
            interpreter.TensorHandle(_widen(m.data), tl.float32) if m.dtype.scalar == tl.bfloat16 else m for m in (a, b)
        ]
        return dot(self, *wide, d, *options)

    def binary_op(self: Any, a: Any, b: Any, function: Any) -> Any:
        assert a.dtype.scalar != tl.bfloat16, "arithmetic on the bits of bfloat16"
        return binary(self, a, b, function)

    builder.cast_impl, builder.create_dot, builder.binary_op = cast_impl, create_dot, binary_op


def _narrow(values: Any) -> Any:
    flat = torch.from_numpy(np.ascontiguousarray(values))
    return flat.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def _widen(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


if __name__ == "__main__":
    patch()
    scan_kernels.CHUNK = SMALL.chunk  # the package's default would put all tokens in one chunk
    if sys.argv[1:] == ["check"]:
        kernels, sizes, cpu = scan_kernels.kernels_of_mixer, ScanSizes(2, 16, 8), torch.device("cpu")
        dtypes = (torch.bfloat16, torch.float32)
        print(json.dumps([scan_problem(kernels, sizes, 2 * SMALL.chunk, cpu, dtype) for dtype in dtypes]))
    else:
        print(json.dumps(measure("mamba_ssm")))

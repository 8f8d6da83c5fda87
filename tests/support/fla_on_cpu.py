"""The kernels of flash-linear-attention on the CPU, under Triton's interpreter: a second oracle beside the recurrence.

Import this after `triton_on_cpu.patch`, in a process where TRITON_INTERPRET was set before anything imported triton.
fla's scan knows one direction, and cells only as parts of one long row; its convolution, too.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import fla.utils
import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner

from tests.support.triton_on_cpu import _narrow as narrow
from tests.support.triton_on_cpu import _widen as widen

# Before fla's other modules take them over: on a CPU there is neither a device to enter nor one to ask.
fla.utils.custom_device_ctx = lambda index: contextlib.nullcontext()
fla.utils.get_multiprocessor_count = lambda index=0: 1

from fla.modules.convolution import causal_conv1d  # noqa: E402
from fla.ops.simple_gla import chunk_simple_gla  # noqa: E402


def _late(module: Any, name: str) -> Callable[..., Any]:
    # The interpreter replaces functions of triton.language while a kernel runs; fla holds the ones from before.
    return lambda *values: getattr(module, name)(*values)


def _prepare() -> None:
    """Leave each kernel one configuration, and let the interpreter see the functions that kernels call."""
    functions = [(tl, "exp"), (tl.math, "exp2"), (tl, "log"), (tl, "log2")]
    for module in [module for name, module in sys.modules.items() if name.startswith("fla.")]:
        for owner, name in functions:
            if getattr(module, name, None) is getattr(owner, name):
                setattr(module, name, _late(owner, name))
        for value in vars(module).values():
            while not isinstance(value, Autotuner) and hasattr(value, "fn"):
                value = value.fn
            if isinstance(value, Autotuner):
                value.configs = value.configs[:1]

    builder = interpreter.InterpreterBuilder
    refusing = builder.binary_op

    def get_bf16(self: Any, value: float) -> Any:
        return interpreter.TensorHandle(narrow(np.array([value], np.float32)), tl.bfloat16)

    def binary_op(self: Any, a: Any, b: Any, function: Any) -> Any:
        # Unlike ours, its kernels multiply bfloat16 by a number: on a GPU, in float32 and rounded.
        if a.dtype.scalar != tl.bfloat16:
            return refusing(self, a, b, function)
        return interpreter.TensorHandle(narrow(function(widen(a.data), widen(b.data))), tl.bfloat16)

    builder.get_bf16, builder.binary_op = get_bf16, binary_op


_prepare()


def bounds(segment: Tensor) -> Tensor:
    """Where cells begin and end in the rows of a batch, one row after another: int64.

    Args:
        segment: int64 (batch, length), a number for each cell of a row and for its unused tail.
    """
    new = torch.ones_like(segment, dtype=torch.bool)
    new[:, 1:] = segment[:, 1:] != segment[:, :-1]
    return torch.cat([new.flatten().nonzero()[:, 0], torch.tensor([segment.numel()])])


def convolved(x: Tensor, weight: Tensor, bias: Tensor, segment: Tensor) -> Tensor:
    """SiLU of the causal convolution within cells, as `DepthwiseConv` computes it from the left.

    Args:
        x: (batch, length, channels).
        weight: (channels, 1, taps).
        bias: (channels,).
        segment: int64 (batch, length).
    """
    row = x.reshape(1, -1, x.shape[-1])
    y, _ = causal_conv1d(row, weight[:, 0], bias, activation="silu", cu_seqlens=bounds(segment))
    return y.reshape(x.shape)


def scanned(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, segment: Tensor) -> Tensor:
    """The scan from the left, within cells.

    Args:
        x: (batch, length, heads, head_dim).
        dt: float32 (batch, length, heads).
        A: float32 (heads,).
        B: (batch, length, d_state), in the type of `x`.
        C: (batch, length, d_state), in the type of `x`.
        D: float32 (heads,).
        segment: int64 (batch, length).
    """
    batch, length, heads, width = x.shape
    q, k = (value[:, :, None].expand(-1, -1, heads, -1).reshape(1, batch * length, heads, -1) for value in (C, B))
    v = (x * dt[..., None]).to(x.dtype).reshape(1, batch * length, heads, width)
    g = (dt * A).reshape(1, batch * length, heads)
    o, _ = chunk_simple_gla(q, k, v, g=g, scale=1.0, cu_seqlens=bounds(segment))
    return o.reshape(x.shape) + D[:, None] * x

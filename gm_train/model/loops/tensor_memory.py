"""Tensors on a CPU as the arrays that compiled loops read and write."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def copy_of(parameter: Tensor) -> NDArray[Any]:
    """Copy a parameter into a contiguous array: a strategy that shards it could not free memory that NumPy reads."""
    return parameter.detach().clone(memory_format=torch.contiguous_format).numpy()


def memory_of(x: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """The memory of x from its first element to its last, and the steps between rows and tokens.

    x is (batch, length, channels) and may be a slice of wider rows. Other layouts are copied.
    """
    if x.stride(-1) != 1 or (x.shape[1] > 1 and x.stride(1) < x.shape[2]):
        x = x.contiguous()
    size = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
    return x.detach().as_strided((size,), (1,)).numpy(), np.array(x.stride()[:2], np.int64)

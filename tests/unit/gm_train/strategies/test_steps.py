"""What strategies share, and what DeepSpeed's strategies leave out."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gm_train.strategies.steps import all_finite


class Transfers(TorchDispatchMode):
    """Counts how often a number is fetched from a device."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_finite_numbers_with_one_transfer(bad: float | None) -> None:
    tensors = [torch.ones(3, 4), torch.zeros(0), torch.ones(2), torch.tensor(1.0)]
    if bad is not None:
        tensors[2][1] = bad
    with Transfers() as transfers:
        assert all_finite(iter(tensors)) == (bad is None)
    assert transfers.n == 1


def test_no_tensors_are_finite() -> None:
    assert all_finite([])


def test_deepspeed_does_not_look_for_compilers() -> None:
    """In its own process, since DeepSpeed remembers what it found."""
    pytest.importorskip("deepspeed")
    program = (
        "import deepspeed, sys\n"
        "deepspeed.ops._probe_compatible_ops = lambda: sys.exit('probed')\n"
        "import gm_train.strategies.zero\n"
        "from deepspeed.comm.torch import build_shm_op\n"
        "assert build_shm_op() is None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

"""What strategies share, and what DeepSpeed's strategies leave out."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gm_train.config.schema import OptimConfig
from gm_train.optim import build_optimizer
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import strategy_class
from gm_train.strategies.single import SingleProcess
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *moments)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_changes_neither_weights_nor_moments_nor_the_count(fused: bool, bad: float) -> None:
    """And the step after it is that of a run without it, bit for bit."""
    results = []
    for with_bad in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
        optimizer = build_optimizer(model, OptimConfig(fused=fused))
        steps = SingleProcess(Ranks(), 0.1)
        for number in range(4):
            x = torch.linspace(-1, 1, 10).view(2, 5) * (number + 1)
            model(x).pow(2).sum().backward()
            if number == 2:
                if not with_bad:
                    optimizer.zero_grad()
                    continue
                model[1].weight.grad[0, 0] = bad
                before = state_of(model, optimizer)
                assert not steps.update(model, optimizer, 0.1).isfinite()
                assert all(torch.equal(a, b) for a, b in zip(before, state_of(model, optimizer), strict=True))
            else:
                assert steps.update(model, optimizer, 0.1) > 0.1
            assert all(parameter.grad is None for parameter in model.parameters())
        results.append(state_of(model, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero2", "zero3"])
def test_blocks_are_compiled_by_default_where_they_can_be_one_graph(name: str) -> None:
    """Zero3 gathers weights within a block; a setting is followed under every strategy."""
    kind = strategy_class(name)
    assert kind.compile_setting(None) is (False if name == "zero3" else None)
    assert kind.compile_setting(True) is True
    assert kind.compile_setting(False) is False

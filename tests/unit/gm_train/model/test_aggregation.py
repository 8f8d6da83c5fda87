"""The published gate, whose gradient is written by hand, against its formula in float64."""

import pytest
import torch
from torch import Tensor

from gm_train.model.aggregation import Gate
from tests.support.small_models import relative_error


def formula(x: Tensor, f: Tensor, b: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x_f, x_b = x + f, x + b
    g = torch.sigmoid(torch.cat([x_f, x_b], dim=-1) @ weight.T + bias)
    return g * x_f + (1 - g) * x_b


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-6), ("bf16", 1e-2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gate_and_its_gradients(precision: str, limit: float, compiled: bool) -> None:
    torch.manual_seed(0)
    gate = Gate(48)
    run = torch.compile(gate, backend="aot_eager", fullgraph=True) if compiled else gate
    narrow = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.randn(2, 33, 48, requires_grad=True)
    f, b = (torch.randn(2, 33, 48).to(narrow).requires_grad_() for _ in range(2))
    leaves = [x, f, b, gate.proj.weight, gate.proj.bias]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = run(x, f, b)
    assert out.dtype == torch.float32
    grad = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, leaves, grad)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = formula(*exact)
    for a, e in zip(found, [wanted, *torch.autograd.grad(wanted, exact, grad.double())], strict=True):
        assert relative_error(a.double(), e) < limit


def test_a_gate_reads_earlier_checkpoints() -> None:
    assert {name: tuple(value.shape) for name, value in Gate(6).state_dict().items()} == {
        "proj.weight": (6, 12),
        "proj.bias": (6,),
    }

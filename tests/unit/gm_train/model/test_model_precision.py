"""Numerical limits: bf16 autocast, decay in float32, exponents that would overflow; and compilation as one graph."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba
from gm_train.model.segments import make_segments
from gm_train.model.ssd import ssd
from tests.support.small_models import AGGREGATIONS, pack, random_cells, random_model, relative_error, small_config


def scan_inputs(length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)
    heads, width, d_state = 2, 4, 8
    return {
        "x": torch.randn(2, length, heads, width, dtype=dtype),
        "dt": F.softplus(torch.randn(2, length, heads, dtype=dtype)),
        "A": -torch.linspace(0.1, 1.0, heads, dtype=dtype),
        "B": torch.randn(2, length, d_state, dtype=dtype),
        "C": torch.randn(2, length, d_state, dtype=dtype),
        "D": torch.ones(heads, dtype=dtype),
    }


@pytest.mark.parametrize("norm", ["none", "pre"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_bf16_autocast_is_finite_and_near_fp32(aggregation: str, norm: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=64, n_layers=3, d_state=16, head_dim=16, aggregation=aggregation, norm=norm)
    model = GeneMamba(config, 50)
    input_ids, segment = pack([random_cells([150, 60], 0), random_cells([90, 100], 1)], tail=6)
    weights = torch.randn(400, 64)

    def states_and_gradients() -> tuple[Tensor, Tensor]:
        model.zero_grad()
        states = model(input_ids, segment)[segment > 0].float()
        (states * weights).sum().backward()
        return states.detach(), torch.cat([p.grad.flatten() for p in model.stack.parameters() if p.grad is not None])

    states, gradients = states_and_gradients()
    with torch.autocast("cpu", torch.bfloat16):
        narrow_states, narrow_gradients = states_and_gradients()
    assert torch.isfinite(narrow_states).all()
    assert torch.isfinite(narrow_gradients).all()
    assert float((narrow_states - states).norm() / states.norm()) < 0.03
    assert float((narrow_gradients - gradients).norm() / gradients.norm()) < 0.1


@pytest.mark.parametrize("reverse", [False, True])
def test_decay_stays_in_the_type_of_dt(reverse: bool) -> None:
    """With bf16 x, B and C the error is that of bf16 products; a bf16 decay would make it many times larger."""
    exact = scan_inputs(256, torch.float64)
    segment = torch.ones(2, 256, dtype=torch.int64)
    expected = ssd(**exact, segments=make_segments(segment, 64, 4, torch.float64), reverse=reverse)
    mixed = {name: value.to(torch.bfloat16 if name in "xBC" else torch.float32) for name, value in exact.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd(**mixed, segments=make_segments(segment, 64, 4), reverse=reverse)
    assert y.dtype == torch.bfloat16
    assert relative_error(y.double(), expected) < 0.01


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e4])
def test_extreme_steps_give_finite_outputs_and_gradients(scale: float, reverse: bool) -> None:
    inputs = {name: value.requires_grad_() for name, value in scan_inputs(50, torch.float32).items()}
    segments = make_segments((torch.arange(50).expand(2, 50) > 20).long(), 16, 4)
    y = ssd(**(inputs | {"dt": inputs["dt"] * scale}), segments=segments, reverse=reverse)
    gradients = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert torch.isfinite(y).all()
    for name, gradient in zip(inputs, gradients, strict=True):
        assert torch.isfinite(gradient).all(), name


def test_a_step_that_underflows_to_zero_gives_finite_gradients() -> None:
    inputs = {name: value.requires_grad_() for name, value in scan_inputs(20, torch.float32).items()}
    segments = make_segments(torch.ones(2, 20, dtype=torch.int64), 8, 4)
    y = ssd(**(inputs | {"dt": inputs["dt"] * 0}), segments=segments)
    gradients = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    torch.testing.assert_close(y, inputs["x"])


def test_the_model_compiles_as_one_graph() -> None:
    model = random_model(small_config(), seed=0)
    input_ids, segment = pack([random_cells([7, 5], 0)], tail=2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    states, expected = compiled(input_ids, segment), model(input_ids, segment)
    weights = torch.randn_like(states)
    parameters = list(model.stack.parameters())
    gradients = torch.autograd.grad((states * weights).sum(), parameters)
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    assert relative_error(states, expected) < 1e-12
    for a, b in zip(gradients, wanted, strict=True):
        assert relative_error(a, b) < 1e-10

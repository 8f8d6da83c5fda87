"""Norms under autocast: sums over a token's channels stay in float32, in both passes and in a compiled one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.model.norm import GatedRMSNorm, RMSNorm

#: Largest relative error of a token's scale. In bfloat16 a mean square is off by up to 4e-3.
LIMIT = 5e-4


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values that are exact in bfloat16: y and gate, (1024, 512)."""
    torch.manual_seed(0)
    y, gate = torch.randn(1024, 512), F.silu(torch.randn(1024, 512))
    return y.bfloat16().to(dtype), gate.bfloat16().to(dtype)


def scale_errors(out: Tensor, exact: Tensor) -> Tensor:
    """The relative error of each token's scale, (tokens,), rounding of single values averaged out."""
    return (out.double() * exact).sum(-1) / exact.square().sum(-1) - 1


def exact_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()


@pytest.mark.parametrize("gated", [True, False])
def test_the_mean_square_is_float32_under_autocast(gated: bool) -> None:
    """With float32 inputs nothing else is rounded to bfloat16, so every token's scale is near that in float64."""
    y, gate = inputs(torch.float32)
    norm = GatedRMSNorm(512) if gated else RMSNorm(512)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = norm(y, gate) if gated else norm(y)
    assert out.dtype == torch.float32
    assert scale_errors(out, exact_norm(y * gate if gated else y, norm.weight)).abs().max() < 1e-6


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gated", [True, False])
def test_scales_of_bfloat16_activations(gated: bool, compiled: bool) -> None:
    """In the types of training, the results themselves are rounded; that averages out over a token's channels."""
    y, gate = inputs(torch.bfloat16)
    norm = GatedRMSNorm(512) if gated else RMSNorm(512)
    run = torch.compile(norm, backend="aot_eager", fullgraph=True) if compiled else norm
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = run(y, gate) if gated else run(y)
    assert out.dtype == torch.bfloat16
    exact = exact_norm(y.double() * gate.double() if gated else y, norm.weight)
    assert scale_errors(out, exact).square().mean().sqrt() < LIMIT


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_the_gated_norm_sum_in_float32(compiled: bool) -> None:
    """Also where the backward pass runs under autocast, as a compiled one does."""
    y, gate = (value[:64].requires_grad_() for value in inputs(torch.float32))
    norm = GatedRMSNorm(512)
    torch.nn.init.normal_(norm.weight)
    leaves = [y, gate, norm.weight]
    # Gradients along the output: their sum over channels, which is subtracted, is as large as it can be.
    weights = exact_norm(y.detach() * gate.detach(), norm.weight.detach())
    run = torch.compile(norm, backend="aot_eager", fullgraph=True) if compiled else norm
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(run(y, gate), leaves, weights.float())
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = torch.autograd.grad(exact_norm(exact[0] * exact[1], exact[2]), exact, weights)
    for name, gradient, expected in zip(("y", "gate", "weight"), found, wanted, strict=True):
        assert (gradient - expected).norm() / expected.norm() < 1e-5, name

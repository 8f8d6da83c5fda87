"""Norms under autocast: sums over a token's channels stay in float32, in both passes and in a compiled one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gm_train.model.norm import GatedRMSNorm, RMSNorm

#: Largest relative error of a token's scale. In bfloat16 a mean square is off by up to 4e-3.
LIMIT = 5e-4


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values that are exact in bfloat16: y and z, (1024, 512)."""
    torch.manual_seed(0)
    y, z = torch.randn(1024, 512), torch.randn(1024, 512)
    return y.bfloat16().to(dtype), z.bfloat16().to(dtype)


def normed(gated: bool, compiled: bool, weight: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Make a norm of y, by z if gated; under autocast."""
    norm = GatedRMSNorm(512) if gated else RMSNorm(512)
    if weight is not None:
        norm.weight = torch.nn.Parameter(weight)
    call = torch.compile(norm, backend="aot_eager", fullgraph=True) if compiled else norm

    def run(y: Tensor, z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = call(z, y)[0] if gated else call(y)
        return out

    return run


def exact_norm(y: Tensor, z: Tensor | None, weight: Tensor) -> Tensor:
    x = y.double() if z is None else y.double() * F.silu(z.double())
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()


def scale_errors(out: Tensor, exact: Tensor) -> Tensor:
    """The relative error of each token's scale, (tokens,): rounding of single values is averaged out."""
    return (out.double() * exact).sum(-1) / exact.square().sum(-1) - 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gated", [True, False])
def test_the_mean_square_is_float32_under_autocast(gated: bool, compiled: bool) -> None:
    """With float32 inputs nothing else is rounded to bfloat16."""
    y, z = inputs(torch.float32)
    out = normed(gated, compiled)(y, z).detach()
    assert out.dtype == torch.float32
    assert scale_errors(out, exact_norm(y, z if gated else None, torch.ones(512))).abs().max() < 1e-6


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gated", [True, False])
def test_scales_of_bfloat16_activations(gated: bool, compiled: bool) -> None:
    y, z = inputs(torch.bfloat16)
    out = normed(gated, compiled)(y, z).detach()
    assert out.dtype == torch.bfloat16
    errors = scale_errors(out, exact_norm(y, z if gated else None, torch.ones(512)))
    assert errors.square().mean().sqrt() < LIMIT


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_the_gated_norm_sum_in_float32(compiled: bool) -> None:
    """Also where the backward pass runs under autocast, as a compiled one does."""
    y, z = (value[:64].requires_grad_() for value in inputs(torch.float32))
    weight = torch.randn(512)
    exact = [leaf.detach().double().requires_grad_() for leaf in (y, z)]
    out = exact_norm(*exact, weight)
    # Gradients along the output: their sum over channels, which is subtracted, is as large as it can be.
    wanted = torch.autograd.grad(out, exact, out.detach())
    run = normed(True, compiled, weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(run(y, z), [y, z], out.detach().float())
    for name, gradient, expected in zip("yz", found, wanted, strict=True):
        assert (gradient - expected).norm() / expected.norm() < 1e-5, name

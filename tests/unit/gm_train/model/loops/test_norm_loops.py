"""The compiled loops of the gated norm: against PyTorch's operations in float64."""

import pytest
import torch
from torch import Tensor

from gm_train.model.loops.norm_loops import TOKENS, gated_norm_loops
from gm_train.model.norm import GatedRMSNorm
from tests.support.small_models import relative_error


def norm(dtype: torch.dtype, n_ys: int, rows: int, width: int) -> list[Tensor]:
    """Outputs and gradients by z, each y and the weight; z is a slice of wider rows."""
    draw = torch.Generator().manual_seed(0)
    module = GatedRMSNorm(width)
    module.weight.data.uniform_(0.5, 2.0, generator=draw)
    wider = 3 * torch.randn(2, rows, width + 7, generator=draw)
    ys, weights = (torch.randn(n_ys, 2, rows, width, generator=draw) for _ in range(2))
    module.to(dtype)
    wide, given = wider.to(dtype).requires_grad_(), [y.to(dtype).requires_grad_() for y in ys]
    outputs = module(wide[..., 3 : 3 + width], *given)
    total = (torch.stack(outputs) * weights.to(dtype)).sum()
    return [*outputs, *torch.autograd.grad(total, [wide, *given, module.weight])]


@pytest.mark.parametrize("n_ys", [1, 2])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (TOKENS, 24), (TOKENS + 3, 130)])
def test_float32_equals_pytorchs_operations_in_float64(n_ys: int, rows: int, width: int) -> None:
    found, wanted = (norm(dtype, n_ys, rows, width) for dtype in (torch.float32, torch.float64))
    scale = max(float(value.detach().abs().max()) for value in wanted)
    for value, exact in zip(found, wanted, strict=True):
        if width > 1:
            assert relative_error(value, exact) < 1e-6
        else:  # a norm over one channel has no gradient but that of eps, a small difference of large numbers
            assert float((value - exact).abs().max()) < 1e-6 * scale


def test_threads_do_not_change_a_bit() -> None:
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append(norm(torch.float32, 2, 200, 40))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_value_that_is_not_a_number_stays_one_and_stays_in_its_token() -> None:
    module, z, y = GatedRMSNorm(16), torch.randn(1, 5, 16), torch.randn(1, 5, 16)
    z[0, 2, 3] = torch.nan
    (out,) = module(z, y)
    assert out[0, 2].isnan().all()
    assert out[0, [0, 1, 3, 4]].isfinite().all()


def test_the_operation_is_registered_completely() -> None:
    z, *ys = (torch.randn(2, 5, 16).requires_grad_() for _ in range(3))
    weight = torch.ones(16).requires_grad_()
    torch.library.opcheck(gated_norm_loops, (z, ys, weight, 1e-5))
    torch.library.opcheck(gated_norm_loops, (z, ys[:1], weight, 1e-5))

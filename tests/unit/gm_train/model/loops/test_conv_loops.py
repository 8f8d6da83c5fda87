"""The compiled loops of the convolution: against PyTorch's operations in float64, on packed cells of any length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gm_train.model.conv import DepthwiseConv
from gm_train.model.loops.conv_loops import TOKENS, conv_silu_loops
from gm_train.model.segments import make_segments
from tests.support.packed_rows import packed
from tests.support.small_models import relative_error

CHANNELS = 24


def convolve(x: Tensor, segment: Tensor, taps: int, bidirectional: bool) -> list[Tensor]:
    """Outputs and gradients by x, taps and bias, in the type of x; x is a slice of wider rows."""
    torch.manual_seed(0)
    conv = DepthwiseConv(CHANNELS, taps).to(x.dtype)
    wider = torch.randn(*x.shape[:2], CHANNELS + 9, dtype=x.dtype)
    wider[..., 5 : 5 + CHANNELS] = x
    wider.requires_grad_()
    outputs = conv(wider[..., 5 : 5 + CHANNELS], make_segments(segment, 16, taps), bidirectional)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).to(x.dtype) for i in (1, 2)]
    total = sum((y * w).sum() for y, w in zip(outputs, weights, strict=False))
    assert isinstance(total, Tensor)
    gradients = torch.autograd.grad(total, [wider, conv.weight, conv.bias])
    return [*outputs, gradients[0][..., 5 : 5 + CHANNELS], *gradients[1:]]


rows_of_cells = st.lists(st.lists(st.integers(1, 2 * TOKENS), min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(lengths=rows_of_cells, taps=st.integers(1, 6), bidirectional=st.booleans(), seed=st.integers(0, 99))
def test_float32_equals_pytorchs_operations_in_float64(
    lengths: list[list[int]], taps: int, bidirectional: bool, seed: int
) -> None:
    segment = packed(lengths)
    x = 3 * torch.randn(*segment.shape, CHANNELS, generator=torch.Generator().manual_seed(seed))
    for value, wanted in zip(
        convolve(x, segment, taps, bidirectional), convolve(x.double(), segment, taps, bidirectional), strict=True
    ):
        assert relative_error(value, wanted) < 1e-6


def test_neighbours_and_threads_do_not_change_a_bit() -> None:
    alone = packed([[70]])
    segment = packed([[30, 70, 50], [5, 60]])
    x = torch.randn(2, 150, CHANNELS)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append(convolve(x, segment, 4, True))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    for whole, part in zip(results[0][:2], convolve(x[:1, 30:100], alone, 4, True)[:2], strict=True):
        assert torch.equal(whole[0, 30:100], part[0])


def test_a_value_that_is_not_a_number_stays_one_and_stays_in_its_cell() -> None:
    segment = packed([[20, 30]])
    x = torch.zeros(1, 50, CHANNELS)
    x[0, 25] = torch.nan
    causal, mirrored, d_x, *_ = convolve(x, segment, 4, True)
    assert causal[0, 25:29].isnan().all()
    assert mirrored[0, 22:26].isnan().all()
    assert d_x[0, 22:29].isnan().all()
    for value in (causal, mirrored, d_x):
        assert value[0, :20].isfinite().all()
        assert value[0, 29:].isfinite().all()


@pytest.mark.parametrize("scale", [1e2, 1e10, 1e30])
def test_large_values_give_finite_results(scale: float) -> None:
    x = scale * torch.linspace(-1, 1, 40)[None, :, None].repeat(1, 1, CHANNELS)
    assert all(value.isfinite().all() for value in convolve(x, packed([[40]]), 4, True)[:3])


def test_the_operation_is_registered_completely() -> None:
    segments = make_segments(packed([[7, 9]]), 16, 4)
    inputs = (torch.randn(1, 16, CHANNELS), torch.randn(4, CHANNELS), torch.randn(CHANNELS))
    x, weight, bias = (value.requires_grad_() for value in inputs)
    for bidirectional in (True, False):
        torch.library.opcheck(conv_silu_loops, (x, segments.reach, weight, bias, bidirectional))

"""The output layer's cross-entropy, a few rows at a time, against PyTorch's on all logits at once."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gm_train.model import output_layer
from gm_train.model.output_layer import OutputLayer

D_MODEL, VOCABULARY = 6, 11


def layer_and_inputs(n: int, tied: bool, seed: int, dtype: torch.dtype) -> tuple[OutputLayer, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layer = OutputLayer(D_MODEL, VOCABULARY, tied).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    states = torch.randn(n, D_MODEL, generator=generator, dtype=dtype, requires_grad=True)
    embedding = torch.randn(VOCABULARY, D_MODEL, generator=generator, dtype=dtype, requires_grad=True)
    return layer, states, embedding, torch.randint(VOCABULARY, (n,), generator=generator)


def gradients(loss: Tensor, layer: OutputLayer, states: Tensor, embedding: Tensor) -> list[Tensor | None]:
    wanted = [states, embedding, *layer.parameters()]
    return list(torch.autograd.grad(3.0 * loss, wanted, allow_unused=True))


@given(st.integers(0, 9), st.integers(1, 60), st.booleans(), st.integers(0, 2**31))
def test_the_loss_and_its_gradients_equal_those_of_all_logits_at_once(
    n: int, at_a_time: int, tied: bool, seed: int
) -> None:
    layer, states, embedding, targets = layer_and_inputs(n, tied, seed, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_layer, "LOGITS_AT_A_TIME", at_a_time)
        loss = layer(states, embedding, targets)
        found = gradients(loss, layer, states, embedding)
    expected = F.cross_entropy(layer(states, embedding), targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for value, wanted in zip(found, gradients(expected, layer, states, embedding), strict=True):
        assert (value is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 6), st.integers(0, 5), st.integers(1, 60), st.integers(0, 2**31))
def test_pads_count_for_nothing(n: int, n_pads: int, at_a_time: int, seed: int) -> None:
    layer, states, embedding, targets = layer_and_inputs(n + n_pads, False, seed, torch.float64)
    order = torch.randperm(n + n_pads, generator=torch.Generator().manual_seed(seed))
    pads, real = order[:n_pads], order[n_pads:].sort().values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_layer, "LOGITS_AT_A_TIME", at_a_time)
        padded = layer(states, embedding, targets.index_fill(0, pads, -1))
        expected = layer(states[real], embedding, targets[real])
        found, wanted = (gradients(loss, layer, states, embedding) for loss in (padded, expected))
    torch.testing.assert_close(padded, expected, rtol=1e-12, atol=1e-12)
    for value, other in zip(found, wanted, strict=True):
        assert (value is None) == (other is None)
        if value is not None:
            torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)
    assert found[0] is not None
    assert not found[0][pads].any()


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_large_logits_do_not_overflow(shift: float) -> None:
    layer, states, embedding, targets = layer_and_inputs(5, False, 0, torch.float32)
    with torch.no_grad():
        layer.bias += shift
    loss = layer(states, embedding, targets)
    expected = F.cross_entropy(layer(states, embedding).double(), targets, reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-3)
    assert all(bool(g.isfinite().all()) for g in gradients(loss, layer, states, embedding) if g is not None)


def test_under_autocast_only_products_are_narrow() -> None:
    layer, states, embedding, targets = layer_and_inputs(9, False, 0, torch.float32)
    expected = layer(states, embedding, targets)
    wanted = gradients(expected, layer, states, embedding)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(states, embedding, targets)
        found = gradients(loss, layer, states, embedding)
    assert loss.dtype == torch.float32
    assert 0 < abs((loss - expected).item()) < 0.02 * expected.item()
    for value, exact in zip(found, wanted, strict=True):
        if value is not None and exact is not None:
            assert value.dtype == torch.float32
            assert float((value - exact).norm() / exact.norm()) < 0.02


def test_a_value_that_is_not_finite_shows_in_the_loss() -> None:
    layer, states, embedding, targets = layer_and_inputs(3, False, 0, torch.float32)
    with torch.no_grad():
        states[1, 2] = torch.nan
    assert layer(states, embedding, targets).isnan()


def test_no_gradients_are_computed_where_none_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, states, embedding, targets = layer_and_inputs(4, False, 0, torch.float64)
    expected = layer(states, embedding, targets)
    monkeypatch.setattr(torch, "mm", None)  # only the gradient calls it
    with torch.no_grad():
        loss = layer(states, embedding, targets)
    assert torch.equal(loss, expected)
    with pytest.raises(TypeError):
        layer(states, embedding, targets)


_PEAK = """
import torch
from gm_train.bench.measure.footprint import Footprint
from gm_train.model.output_layer import OutputLayer
torch.manual_seed(0)
layer = OutputLayer(512, 25426, tied=False)
n = round(0.15 * 32 * 2048)
states, targets = torch.randn(n, 512, requires_grad=True), torch.randint(25426, (n,))
layer(states[:8], states, targets[:8]).backward()  # libraries allocate what they keep
before = Footprint.own()
layer(states, states, targets).backward()
print(Footprint.own() - before)
"""


@pytest.mark.slow
def test_the_memory_of_the_loss() -> None:
    """32 rows of 2,048 tokens, 15 % of them predicted among 25,426: all logits would take 1 GB, twice in backward."""
    added = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True).stdout
    assert int(added) < 0.7e9

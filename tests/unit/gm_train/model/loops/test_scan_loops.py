"""The compiled loops of the scan: against the products of `ssd.py` in float64, on packed cells of any length."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gm_train.config.schema import ModelConfig
from gm_train.model.loops import scan_loops as home
from gm_train.model.loops.scan_loops import scan, scan_loops, takes
from gm_train.model.mixer import Mamba2Mixer
from gm_train.model.segments import Segments, make_segments
from gm_train.model.ssd import ssd
from tests.support.packed_rows import packed
from tests.support.small_models import relative_error

HEADS, WIDTH, D_STATE, CHUNK = 3, 8, 12, 16


def arrays(segment: Tensor, width: int, d_state: int, seed: int = 0) -> list[Tensor]:
    """x, B and C in one array, dt, A, D and weights of the outputs, float32."""
    draw = torch.Generator().manual_seed(seed)
    shape = tuple(segment.shape)
    xBC = torch.randn(*shape, HEADS * width + 2 * d_state, generator=draw)
    dt = 0.2 * torch.rand(*shape, HEADS, generator=draw)
    A, D = -16 * torch.rand(HEADS, generator=draw), torch.randn(HEADS, generator=draw)
    return [xBC, dt, A, D, torch.randn(*shape, HEADS, width, generator=draw)]


def by_loops(inputs: list[Tensor], segments: Segments, d_state: int, reverse: bool) -> list[Tensor]:
    """Outputs and gradients; x, B and C are a slice of wider rows."""
    xBC, dt, A, D, weights = inputs
    wider = torch.nn.functional.pad(xBC, (5, 9)).requires_grad_()
    rest = [value.clone().requires_grad_() for value in (dt, A, D)]
    y = scan(wider[..., 5:-9], *rest, segments.cells[: len(xBC)], d_state, segments.chunk, reverse)
    d_wider, *others = torch.autograd.grad((y * weights).sum(), [wider, *rest])
    return [y, d_wider[..., 5:-9], *others]


def by_products(inputs: list[Tensor], segments: Segments, d_state: int, reverse: bool) -> list[Tensor]:
    """The same from `ssd`, in float64."""
    *leaves, weights = (value.double() for value in inputs)
    xBC, dt, A, D = (value.requires_grad_() for value in leaves)
    x, B, C = torch.split(xBC, [xBC.shape[2] - 2 * d_state, d_state, d_state], dim=-1)
    y = ssd(x.unflatten(-1, (HEADS, -1)), dt, A, B, C, D, segments, reverse)
    return [y, *torch.autograd.grad((y * weights).sum(), [xBC, dt, A, D])]


def errors(segment: Tensor, width: int, d_state: int, chunk: int, reverse: bool, seed: int = 0) -> list[float]:
    """Relative errors of y and of the gradients by xBC, dt, A and D."""
    inputs = arrays(segment, width, d_state, seed)
    segments = make_segments(segment, chunk, 4, torch.float64)
    pairs = zip(
        by_loops(inputs, segments, d_state, reverse), by_products(inputs, segments, d_state, reverse), strict=True
    )
    return [relative_error(value, exact) for value, exact in pairs]


rows_of_cells = st.lists(st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(lengths=rows_of_cells, reverse=st.booleans(), seed=st.integers(0, 99))
def test_float32_equals_products_in_float64(lengths: list[list[int]], reverse: bool, seed: int) -> None:
    *found, of_A, of_D = errors(packed(lengths), WIDTH, D_STATE, CHUNK, reverse, seed)
    assert max(*found, of_D) < 5e-6
    assert of_A < 5e-5 or max(map(max, lengths)) == 1  # a small difference of large sums; 0 for cells of one token


@pytest.mark.parametrize("reverse", [False, True])
def test_the_decay_of_cells_of_one_token_does_not_matter(reverse: bool) -> None:
    segment = packed([[1] * 40])
    _, _, _, of_A, _ = by_loops(arrays(segment, WIDTH, D_STATE), make_segments(segment, CHUNK, 4), D_STATE, reverse)
    assert of_A.abs().max() < 1e-5


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("width", "d_state", "chunk"), [(64, 64, 64), (48, 24, 64), (8, 16, 7), (1, 1, 1)])
def test_any_size_that_fits(width: int, d_state: int, chunk: int, reverse: bool) -> None:
    assert max(errors(packed([[200], [30, 1, 64, 100]]), width, d_state, chunk, reverse)) < 5e-5


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("width", "d_state", "chunk"), [(64, 64, 64), (8, 16, 32)])
def test_slices_of_wider_rows_of_whole_chunks(width: int, d_state: int, chunk: int, reverse: bool) -> None:
    # Rows of other lengths are copied when they are filled up.
    assert max(errors(packed([[128], [30, 98]]), width, d_state, chunk, reverse)) < 5e-5


def test_one_token_for_all_positions() -> None:
    segment = packed([[32]])
    inputs = arrays(segment, WIDTH, D_STATE)
    expanded = inputs[0][:, :1].expand(1, 32, -1)
    runs = make_segments(segment, CHUNK, 4).cells[:1]
    found, wanted = (scan(xBC, *inputs[1:4], runs, D_STATE, CHUNK, False) for xBC in (expanded, expanded.clone()))
    assert torch.equal(found, wanted)


def test_not_without_compiled_code() -> None:
    code = (
        "import torch\nfrom gm_train.model.loops.scan_loops import takes\n"
        "print(takes(torch.zeros(1, 32, 48), torch.ones(1, 32, 3), 16, 12))"
    )
    for disabled, wanted in (("0", "True"), ("1", "False")):
        environment = os.environ | {"NUMBA_DISABLE_JIT": disabled}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == wanted


def test_neighbours_and_threads_do_not_change_a_bit() -> None:
    segment = packed([[32, 70, 50], [5, 60]])
    inputs = arrays(segment, WIDTH, D_STATE)
    segments = make_segments(segment, CHUNK, 4)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 3):
            torch.set_num_threads(n)
            results.append([by_loops(inputs, segments, D_STATE, reverse) for reverse in (False, True)])
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    # The second cell of the first row begins at a chunk's border, as it does alone.
    alone = [value[:1, 32:102] if value.dim() > 1 else value for value in inputs]
    for reverse in (False, True):
        found = by_loops(alone, make_segments(packed([[70]]), CHUNK, 4), D_STATE, reverse)
        for part, whole in zip(found[:3], results[0][reverse][:3], strict=True):
            assert torch.equal(part[0], whole[0, 32:102])


def test_step_sizes_of_zero_and_strong_decay() -> None:
    segment = packed([[100]])
    inputs = arrays(segment, WIDTH, D_STATE)
    inputs[1][0, ::7] = 0
    inputs[1][0, 1::7] = 10
    segments = make_segments(segment, CHUNK, 4, torch.float64)
    for reverse in (False, True):
        found, exact = (way(inputs, segments, D_STATE, reverse) for way in (by_loops, by_products))
        assert max(relative_error(value, wanted) for value, wanted in zip(found, exact, strict=True)) < 1e-4


@pytest.mark.parametrize(("which", "value"), [(1, torch.nan), (1, torch.inf), (2, torch.nan), (2, -torch.inf)])
def test_steps_and_decays_that_are_not_finite_do_not_pass_for_finite(which: int, value: float) -> None:
    segment = packed([[40, 40]])
    inputs = arrays(segment, WIDTH, D_STATE)
    inputs[which][..., 0].flatten()[:] = value
    inputs[which][(0, 50, 0) if which == 1 else (0,)] = value
    for reverse in (False, True):
        y, *_ = by_loops(inputs, make_segments(segment, CHUNK, 4), D_STATE, reverse)
        assert not y[0, 40:, 0].isfinite().all()


def test_a_mixer_uses_them_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    scan = home.scan_loops
    monkeypatch.setattr(home, "scan_loops", lambda *arguments: calls.append(arguments[-1]) or scan(*arguments))
    config = ModelConfig(d_model=32, head_dim=16, d_state=8, chunk=16)
    for dtype, wanted in ((torch.float32, [False, True]), (torch.float64, [])):
        calls.clear()
        mixer = Mamba2Mixer(config).to(dtype)
        mixer(torch.randn(1, 20, 32, dtype=dtype), make_segments(packed([[20]]), 16, 4, dtype), True)
        assert calls == wanted


def test_what_the_loops_take() -> None:
    segment = packed([[20]])
    xBC, dt, *_ = arrays(segment, WIDTH, D_STATE)
    assert takes(xBC, dt, CHUNK, D_STATE)
    assert not takes(xBC.double(), dt.double(), CHUNK, D_STATE)
    assert not takes(xBC.bfloat16(), dt, CHUNK, D_STATE)
    for width, d_state, chunk in ((64, 64, 64), (64, 128, 32)):
        xBC, dt, *_ = arrays(segment, width, d_state)
        assert takes(xBC, dt, chunk, d_state)
        assert not takes(xBC, dt, chunk + 1, d_state)
    for width, d_state in ((65, 64), (64, 65)):
        xBC, dt, *_ = arrays(segment, width, d_state)
        assert not takes(xBC, dt, 64, d_state)
    assert not takes(xBC[:0], dt[:0], CHUNK, D_STATE)


def test_the_operation_is_registered_completely() -> None:
    segments = make_segments(packed([[7, 25]]), CHUNK, 4)
    xBC, dt, A, D, _ = arrays(segments.cells[:1], WIDTH, D_STATE)
    inputs = [value.requires_grad_() for value in (xBC, dt, A, D)]
    for reverse in (False, True):
        torch.library.opcheck(scan_loops, (*inputs, segments.cells[:1], D_STATE, CHUNK, reverse))
    with pytest.raises(ValueError, match="32 tokens are not whole chunks of 15"):
        scan_loops(*inputs, segments.cells[:1], D_STATE, 15, False)


def test_compiled_and_checkpointed_mixers_give_the_same() -> None:
    segments = make_segments(packed([[20, 13]]), 16, 4)
    mixer = Mamba2Mixer(ModelConfig(d_model=32, head_dim=16, d_state=8, chunk=16))
    x = torch.randn(1, 33, 32, requires_grad=True)

    def results(way: Any) -> list[Tensor]:
        outs = torch.stack(tuple(way(x, segments, True)))
        return [outs, *torch.autograd.grad(outs.sin().sum(), [x, *mixer.parameters()])]

    plain = results(mixer)
    compiled = results(torch.compile(mixer, backend="aot_eager", fullgraph=True))
    again = results(lambda *given: checkpoint(mixer, *given, use_reentrant=False))
    for value, one, other in zip(plain, compiled, again, strict=True):
        assert relative_error(one, value) < 1e-6
        assert torch.equal(other, value)

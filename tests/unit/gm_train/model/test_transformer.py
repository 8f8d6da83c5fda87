"""The transformer baseline: layout of cells, choice of kernel, and training."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gm_train.cli.main import main
from gm_train.model import attention
from gm_train.model.attention import SDPA, VARLEN, attend, attention_kernel, cell_layout
from gm_train.run.records import METRICS, read_rows
from tests.conftest import Atlas, tiny_words
from tests.support.small_models import pack, packed_lengths, random_cells, random_model, relative_error, small_config

CUDA = torch.device("cuda")


def packed_segment(lengths: list[list[int]], tail: int) -> Tensor:
    return pack([random_cells(row, seed=0) for row in lengths], tail)[1]


def by_masks(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    """Attention between each two neighbouring bounds, by one dense mask; zeros after the last bound."""
    number = torch.zeros(len(q), dtype=torch.int64)
    for i, (begin, end) in enumerate(itertools.pairwise(bounds), start=1):
        number[begin:end] = i
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(number[:, None] != number, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v) * (number > 0)[:, None, None]


@settings(max_examples=100)
@given(lengths=packed_lengths, tail=st.integers(0, 9))
def test_cells_are_sorted_by_length_and_tails_come_last(lengths: list[list[int]], tail: int) -> None:
    segment = packed_segment(lengths, tail)
    cells = cell_layout(segment)
    slots = torch.arange(segment.numel())
    order = slots if cells.order is None else cells.order
    back = slots if cells.back is None else cells.back
    assert torch.equal(order[back], slots)
    sizes = sorted(itertools.chain(*lengths))
    assert list(itertools.chain(*([length] * n for n, length in cells.groups))) == sizes
    assert cells.bounds.tolist() == [0, *itertools.accumulate(sizes)]
    assert cells.n_tokens == sum(sizes)
    numbered = (segment + 100 * torch.arange(len(segment))[:, None]).flatten()[order]
    for begin, end in itertools.pairwise(cells.bounds.tolist()):
        assert (numbered[begin:end] == numbered[begin]).all()
        assert torch.equal(order[begin:end], order[begin] + slots[: end - begin])
        assert torch.equal(cells.rank[begin:end], slots[: end - begin])
    assert (segment.flatten()[order[cells.n_tokens :]] == 0).all()


def test_rows_of_one_whole_cell_are_not_moved() -> None:
    cells = cell_layout(packed_segment([[7], [7], [7]], tail=0))
    assert cells.order is None
    assert cells.back is None
    assert cells.groups == ((3, 7),)


@settings(max_examples=50)
@given(lengths=packed_lengths, tail=st.integers(0, 9), varlen=st.booleans())
def test_either_kernel_attends_within_cells(lengths: list[list[int]], tail: int, varlen: bool) -> None:
    """The variable-length kernel itself needs a GPU; here a stand-in follows its documentation."""
    segment = packed_segment(lengths, tail)
    cells = cell_layout(segment)
    q, k, v = torch.randn(3, segment.numel(), 2, 4, dtype=torch.float64, requires_grad=True).unbind(0)

    def documented(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
        assert (cu_q.dtype, cu_k.dtype) == (torch.int32, torch.int32)
        assert torch.equal(cu_q, cu_k)
        assert cu_q[-1] == len(q) == len(k) == len(v)
        assert max_q == max_k == cu_q.diff().max()
        return by_masks(q, k, v, cu_q.tolist())

    with pytest.MonkeyPatch.context() as patch:
        if varlen:
            patch.setattr(attention, "attention_kernel", lambda *_: (VARLEN, ""))
            patch.setattr(attention, "varlen_attn", documented)
        found = attend(q, k, v, cells)
    expected = by_masks(q, k, v, cells.bounds.tolist()).flatten(1)
    weights = torch.randn_like(expected)
    assert relative_error(found, expected) < 1e-12
    for gradient, wanted in zip(
        torch.autograd.grad((found * weights).sum(), [q, k, v]),
        torch.autograd.grad((expected * weights).sum(), [q, k, v]),
        strict=True,
    ):
        # In a cell of one token, queries and keys have no gradient except rounding errors.
        assert (gradient - wanted).abs().max() < 1e-10 * max(1.0, float(wanted.abs().max()))


def test_one_flash_call_without_a_mask_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def counted(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        assert not options
        shapes.append(tuple(q.shape))
        return sdpa(q, k, v)

    sdpa = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model = random_model(small_config(arch="transformer", n_layers=1), seed=0, dtype=torch.float32)
    input_ids, segment = pack([random_cells(row, 0) for row in ([9, 4, 4], [4, 9, 1])], tail=2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises if that kernel cannot run
        model(input_ids, segment).sum().backward()
    assert shapes == [(1, 3, 1, 4), (3, 3, 4, 4), (2, 3, 9, 4)]


def test_a_batch_of_tails_alone_is_finite() -> None:
    model = random_model(small_config(arch="transformer"), seed=0)
    nothing = torch.zeros(2, 5, dtype=torch.int64)
    assert torch.isfinite(model(nothing, nothing)).all()


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "head_dim", "kernel", "why"),
    [
        ("cpu", None, torch.bfloat16, 64, SDPA, "a GPU, this is cpu"),
        ("cuda", (9, 0), torch.bfloat16, 64, VARLEN, "one call"),
        ("cuda", (8, 0), torch.float16, 8, VARLEN, "one call"),
        ("cuda", (7, 5), torch.float16, 64, SDPA, "this GPU has 7.5"),
        ("cuda", (9, 0), torch.float32, 64, SDPA, "this is float32"),
        ("cuda", (9, 0), torch.bfloat16, 4, SDPA, "these have 4"),
        ("cuda", (9, 0), torch.bfloat16, 264, SDPA, "these have 264"),
    ],
)
def test_the_kernel_and_why(
    device: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    head_dim: int,
    kernel: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    name, line = attention_kernel(torch.device(device), dtype, head_dim)
    assert name == kernel
    assert why in line
    assert "\n" not in line


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_varlen_attn_equals_float64() -> None:
    segment = packed_segment([[300, 17, 1], [128, 128]], tail=40)
    cells = cell_layout(segment.to(CUDA))
    wide = torch.randn(3, segment.numel(), 2, 64, dtype=torch.float64)
    narrow = wide.to(CUDA, torch.bfloat16).requires_grad_()
    wide = narrow.detach().cpu().double().requires_grad_()
    assert attention_kernel(CUDA, narrow.dtype, 64)[0] == VARLEN
    found = attend(*narrow.unbind(0), cells)
    expected = by_masks(*wide.unbind(0), cells.bounds.tolist()).flatten(1)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((found * weights.to(CUDA, torch.bfloat16)).sum(), narrow)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), wide)
    assert relative_error(found.double().cpu(), expected) < 0.02
    assert relative_error(gradient.double().cpu(), wanted) < 0.02


def test_it_trains_far_below_corpus_frequency_and_is_evaluated(atlas: Atlas, tmp_path: Path) -> None:
    """Within 500 steps. The frequency control excludes the genes that a cell shows, which helps a lot with 80 genes."""
    words = [
        *tiny_words(atlas.store, tmp_path / "run"), "model.arch=transformer", "model.n_heads=2", "model.d_ff=96",
        "data.rows_per_lane=2", "data.micro_rows=8", "objective.mask_rate=0.3", "optim.lr=1e-2",
        "optim.warmup_steps=20", "optim.schedule_steps=500", "trainer.max_steps=500", "checkpoint.every_steps=500",
        "trainer.validate_every_steps=0",
    ]  # fmt: skip
    assert main(["fit", *words]) == 0
    files = [str(file) for file in atlas.files]
    assert main(["eval", str(tmp_path / "run"), *files, "--max-cells", "200", "--tasks", "masked"]) == 0
    results = json.loads((tmp_path / "run" / "eval" / "eval.json").read_text())["masked"]
    on_held_out = {row["scored"]: row["cross_entropy"]["mean"] for row in results if row["ranks"] == "plain"}
    losses = [row["l_lang"] for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    assert len(losses) == 500
    assert np.mean(losses[-50:]) < on_held_out["frequency"] - 0.3
    assert on_held_out["model"] < on_held_out["random weights"] - 0.8

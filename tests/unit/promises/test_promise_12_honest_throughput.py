"""Promise 12: FLOPs by a formula that agrees with PyTorch's counter, real tokens, and a baseline of equal size."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from gm_train.bench.model.contenders import matched_transformer
from gm_train.config.load import load_config
from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba
from gm_train.model.loops import scan_loops
from gm_train.plan.flops import TRAINING, Work, forward_parts, training_flops
from gm_train.plan.model_size import n_parameters
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words

LENGTH, ROWS, VOCABULARY = 128, 2, 301
SIZES = ModelConfig(d_model=64, n_layers=2, d_state=16, head_dim=32, chunk=32, n_heads=4, d_ff=96)
VARIANTS = {
    "gate": {},
    "head_gate": {"aggregation": "head_gate"},
    "mean": {"aggregation": "mean"},
    "mamba": {"arch": "mamba"},
    "transformer": {"arch": "transformer"},
}


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    batch, heads, length, width = q
    return 4 * batch * heads * length * k[2] * width


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    # The kernel computes the scores a second time, which the formula leaves out.
    return 2 * _attention(q, k, v)


def _adding(total: Any, one: Any, other: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(one) * int(other[-1])


# The counter knows neither the CPU's kernel nor products that add in place.
KERNELS = {
    torch.ops.aten.addmm_: _adding,
    torch.ops.aten.baddbmm_: _adding,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count(config: ModelConfig) -> int:
    """FLOPs of forward and backward over rows of one cell, every position predicted."""
    torch.manual_seed(0)
    model = GeneMamba(config, VOCABULARY)
    ids = torch.randint(2, VOCABULARY, (ROWS, LENGTH))
    # The counter cannot see the products of compiled loops.
    with (
        patch.object(scan_loops, "takes", lambda *arguments: False),
        FlopCounterMode(display=False, custom_mapping=KERNELS) as counter,
    ):
        logits = model.logits(model(ids, torch.ones_like(ids))).flatten(0, 1)
        F.cross_entropy(logits, ids.flatten()).backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_formula_agrees_with_the_counter(name: str) -> None:
    config = replace(SIZES, **VARIANTS[name])
    work = Work(context=LENGTH, targets=1.0)
    expected = ROWS * LENGTH * training_flops(config, VOCABULARY, work)
    # The counter does not count the convolution, which is computed as shifted products. It counts the running sums of
    # the decay as matrix products, which the formula leaves out.
    convolution = ROWS * LENGTH * TRAINING * forward_parts(config, VOCABULARY, work).get("convolution", 0.0)
    assert count(config) == pytest.approx(expected - convolution, rel=0.02)


def test_a_transformers_products_are_counted_exactly() -> None:
    config = replace(SIZES, arch="transformer")
    assert count(config) == ROWS * LENGTH * training_flops(config, VOCABULARY, Work(LENGTH, 1.0))


def test_a_layer_at_the_published_size_has_the_published_figures() -> None:
    config = ModelConfig(chunk=256)
    shared, twice = (
        sum(forward_parts(config, 25_426, Work(2048, 0.0, projections)).values()) / config.n_layers
        for projections in (1, 2)
    )
    assert shared / 1e6 == pytest.approx(7.07, rel=0.005)
    assert twice / 1e6 == pytest.approx(9.32, rel=0.005)


def test_the_published_size_as_a_transformer_has_the_known_figures() -> None:
    config = ModelConfig(arch="transformer", n_layers=12, d_ff=2048)
    for length, known in ((2048, 151.9), (4096, 202.2)):
        flops = sum(forward_parts(config, 25_426, Work(length, 1.0)).values())
        assert flops / 1e6 == pytest.approx(known, rel=0.005)


def test_only_predicted_positions_pay_for_the_output_layer() -> None:
    few, all_of_them = (forward_parts(SIZES, VOCABULARY, Work(LENGTH, share)) for share in (0.15, 1.0))
    assert few["output"] == pytest.approx(0.15 * all_of_them["output"])
    assert few["scan"] == all_of_them["scan"]


def test_promise_12_pads_are_no_tokens(atlas: Atlas, tmp_path: Path) -> None:
    """What a step counts is the sum of the lengths of its cells in the store."""
    words = [*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=5", "trainer.validate_every_steps=0"]
    config = load_config(*words)
    fit(config)
    steps = [row for row in read_rows(tmp_path / "run" / METRICS) if "loss" in row]
    reader = StoreReader(config.data.store, 64 << 20, 0)
    plan = RowPlan(
        config.run.seed,
        config.data.lanes,
        config.data.pool_blocks or 0,
        config.data.group_cells,
        config.data.row_length,
    )
    lanes = Lanes(reader, plan, dict.fromkeys(range(config.data.lanes), (0, 0)))
    for step in steps:
        lengths = lanes.take(config.data.rows_per_lane).lengths
        assert step["tokens"] == lengths.sum()
        assert step["tokens_per_s"] == pytest.approx(lengths.sum() / step["step_s"])
        assert step["fill"] == pytest.approx(lengths.sum() / (config.data.lanes * config.data.row_length))


@pytest.mark.parametrize(("d_model", "n_layers"), [(128, 4), (512, 24)])
def test_promise_12_the_baseline_has_as_many_parameters(d_model: int, n_layers: int) -> None:
    ours = ModelConfig(d_model=d_model, n_layers=n_layers)
    sizes = [n_parameters(model, 25_426) for model in (ours, matched_transformer(ours, 25_426))]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)

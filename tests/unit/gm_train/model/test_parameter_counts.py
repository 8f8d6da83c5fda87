"""Exact parameter counts of the published models, and initial values."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba

VOCABULARY = 25_426


def count(**changes: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GeneMamba(ModelConfig(**changes), VOCABULARY).parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 66_269_138),
        ({"aggregation": "concat"}, 66_269_138),
        ({"aggregation": "mean"}, 65_744_338),
        ({"aggregation": "sum"}, 65_744_338),
        ({"arch": "mamba"}, 65_744_338),
        ({"aggregation": "head_gate"}, 65_744_338 + 24 * 16 * 512),
        ({"arch": "mamba", "aggregation": "head_gate"}, 65_744_338),
        ({"gate_per_layer": True}, 65_744_338 + 24 * (1024 * 512 + 512)),
        ({"aggregation": "mean", "tie_output": True}, 65_744_338 - VOCABULARY * 512),
        ({"aggregation": "mean", "norm": "pre"}, 65_744_338 + 24 * 512),
        # Embedding, output layer with bias, final norm; for each layer four projections of attention, two of the
        # feed-forward network and two norms.
        (
            {"arch": "transformer", "n_layers": 12},
            2 * VOCABULARY * 512 + VOCABULARY + 512 + 12 * (4 * 512**2 + 2 * 512 * 2240 + 2 * 512),
        ),
        ({"arch": "transformer", "n_layers": 12}, 66_182_482),
    ],
)
def test_counts_of_the_published_size(changes: dict[str, Any], expected: int) -> None:
    assert count(**changes) == expected


def test_the_baseline_with_half_the_layers_has_as_many_parameters() -> None:
    ours, baseline = count(), count(arch="transformer", n_layers=12)
    assert abs(baseline / ours - 1) < 0.01


@pytest.mark.parametrize(("n_layers", "d_model", "millions"), [(48, 512, 105), (24, 768, 127), (48, 768, 215)])
def test_counts_of_the_larger_models(n_layers: int, d_model: int, millions: int) -> None:
    assert count(n_layers=n_layers, d_model=d_model, aggregation="mean") // 1_000_000 == millions


def test_mixer_parameters_are_named_and_shaped_as_in_mamba_ssm() -> None:
    with torch.device("meta"):
        mixer = GeneMamba(ModelConfig(n_layers=1), 10).stack.layers[0].get_submodule("mixer")
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters()} == {
        "in_proj.weight": (2 * 1024 + 2 * 64 + 16, 512),
        "conv1d.weight": (1024 + 2 * 64, 1, 4),
        "conv1d.bias": (1024 + 2 * 64,),
        "dt_bias": (16,),
        "A_log": (16,),
        "D": (16,),
        "norm.weight": (1024,),
        "out_proj.weight": (512, 1024),
    }


def test_the_shared_gate_belongs_to_no_layer() -> None:
    with torch.device("meta"):
        model = GeneMamba(ModelConfig(n_layers=3), 10)
    assert [name for name, _ in model.named_parameters() if "aggregation" in name] == [
        "stack.aggregations.0.proj.weight",
        "stack.aggregations.0.proj.bias",
    ]


@pytest.mark.parametrize("changes", [{}, {"tie_output": True}, {"arch": "transformer"}])
def test_initial_values_through_the_meta_device_equal_those_of_direct_construction(changes: dict[str, Any]) -> None:
    config = ModelConfig(d_model=256, n_layers=2, head_dim=2, norm="pre", **changes)
    torch.manual_seed(0)
    direct = GeneMamba(config, 500)
    with torch.device("meta"):
        model = GeneMamba(config, 500)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(1)
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.reset_parameters()  # type: ignore[operator]
    values = dict(model.named_parameters())
    for name, parameter in direct.named_parameters():
        value, expected = values[name].detach(), parameter.detach()
        assert torch.isfinite(value).all(), name
        error = 6 * float(expected.std()) / math.sqrt(expected.numel()) + 1e-7
        assert abs(float(value.mean() - expected.mean())) < 1.5 * error, name
        assert abs(float(value.std() - expected.std())) < error, name


def test_initial_steps_and_decays_lie_in_mamba_2s_ranges() -> None:
    torch.manual_seed(0)
    mixer = GeneMamba(ModelConfig(d_model=256, n_layers=1, head_dim=1), 10).stack.layers[0].get_submodule("mixer")
    parameters = {name: parameter.detach() for name, parameter in mixer.named_parameters()}
    dt = F.softplus(parameters["dt_bias"].double())
    assert float(dt.min()) >= 0.99e-3
    assert float(dt.max()) <= 1.01e-1
    assert abs(float(dt.log10().mean()) + 2) < 0.1  # log-uniform
    decay = parameters["A_log"].exp()
    assert float(decay.min()) >= 1
    assert float(decay.max()) <= 16.001
    assert abs(float(decay.mean()) - 8.5) < 0.6
    assert (parameters["D"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 60}, "head_dim=60 does not divide"),
        ({"arch": "lstm"}, "model.arch='lstm'"),
        ({"arch": "transformer", "n_heads": 7}, "model.n_heads=7"),
        ({"arch": "transformer", "d_model": 24}, "even multiple"),
        ({"aggregation": "max"}, "model.aggregation='max'"),
        ({"norm": "post"}, "model.norm='post'"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(**changes)

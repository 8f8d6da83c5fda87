"""The rungs between the published way and ours compute one function."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gm_train.bench.model.contenders import (
    AsPublished,
    Contender,
    as_published,
    ladder,
    matched_transformer,
    n_parameters,
)
from gm_train.bench.model.published import Published
from gm_train.config.schema import Config, ModelConfig
from gm_train.model.genemamba import GeneMamba
from tests.support.small_models import VOCABULARY, pack, random_cells, random_model, relative_error, small_config


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    return pack([random_cells([7, 3, 9], seed=1), random_cells([11, 5], seed=2)], tail=2)


@pytest.mark.parametrize("shared_projection", [False, True])
@pytest.mark.parametrize("aggregation", ["gate", "mean", "sum", "concat"])
def test_packed_it_has_our_states_and_gradients(
    rows: tuple[Tensor, Tensor], aggregation: str, shared_projection: bool
) -> None:
    config = small_config(aggregation=aggregation)
    ours = random_model(config, seed=3)
    published = Published(config, VOCABULARY, shared_projection).double()
    published.load_state_dict(ours.state_dict())
    is_token = rows[1] > 0
    states = [model(*rows)[is_token] for model in (ours, published)]
    assert relative_error(states[1], states[0]) < 1e-12
    gradients = [torch.autograd.grad(s.square().sum(), list(m.parameters()), allow_unused=True)
                 for s, m in zip(states, (ours, published), strict=True)]  # fmt: skip
    for own, theirs in zip(*gradients, strict=True):
        assert (own is None) == (theirs is None)
        if own is not None and theirs is not None:
            assert relative_error(theirs, own) < 1e-10


def test_padded_it_treats_pads_as_tokens() -> None:
    config = small_config()
    published = Published(config, VOCABULARY, False)
    published.load_state_dict(random_model(config, seed=3, dtype=torch.float32).state_dict())
    (cell,) = random_cells([9], seed=1)
    alone, _ = pack([[cell]], tail=0)
    padded, segment = pack([[cell]], tail=4)
    expected = published(alone, torch.ones_like(alone))
    as_tokens = published(padded, torch.ones_like(padded))[:, :9]
    as_tail = published(padded, segment)[:, :9]
    assert relative_error(as_tail, expected) < 1e-5
    assert relative_error(as_tokens, expected) > 1e-3


def test_it_refuses_another_variant() -> None:
    for changes in ({"norm": "pre"}, {"aggregation": "head_gate"}, {"arch": "mamba"}):
        with pytest.raises(ValueError, match="published variant needs"):
            Published(small_config(**changes), VOCABULARY, False)


def test_the_ladder_changes_one_thing_at_a_time() -> None:
    config = Config(model=small_config(norm="pre", aggregation="head_gate"))
    rungs = ladder(config, compiled=True, device=torch.device("cpu"))
    settings = [
        (rung.padded, rung.all_positions, rung.whole_logits,
         rung.published is not None and not rung.published.shared_projection,
         rung.published is not None, not rung.config.trainer.compile)
        for rung in rungs
    ]  # fmt: skip
    assert settings[0] == (True,) * 6
    assert settings[-1] == (False,) * 6
    for before, after in pairwise(settings):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert all(rung.config.model == as_published(config).model for rung in rungs)
    shapes = [
        {name: value.shape for name, value in rung.build(VOCABULARY, torch.device("cpu")).state_dict().items()}
        for rung in rungs[:-1]
    ]
    assert all(found == shapes[0] for found in shapes)


def test_twice_the_projection_is_counted_for_the_published_way_alone() -> None:
    config = as_published(Config(model=small_config()))
    flops = [
        Contender("", config, published).flops_per_token(VOCABULARY, 10.0, 1.0, torch.device("cpu"))
        for published in (AsPublished(), AsPublished(shared_projection=True), None)
    ]
    assert flops[0] > flops[1] == flops[2]


@pytest.mark.parametrize(("d_model", "n_layers"), [(512, 24), (256, 4), (128, 2), (768, 24)])
def test_the_transformer_has_as_many_parameters(d_model: int, n_layers: int) -> None:
    model = ModelConfig(d_model=d_model, n_layers=n_layers)
    baseline = matched_transformer(model, 25_426)
    assert baseline.n_layers == n_layers // 2
    assert n_parameters(baseline, 25_426) == pytest.approx(n_parameters(model, 25_426), rel=0.01)
    if (d_model, n_layers) == (512, 24):
        assert baseline.d_ff == model.d_ff


def test_counting_parameters_agrees_with_a_built_model() -> None:
    config = replace(small_config(), d_model=12)
    built = GeneMamba(config, VOCABULARY)
    assert n_parameters(config, VOCABULARY) == sum(parameter.numel() for parameter in built.parameters())

"""Parameter groups by name, and the learning rate by step."""

import itertools
from pathlib import Path

import pytest
import torch

from gm_train.checkpoint.state import load_by_name, save_by_name
from gm_train.config.schema import Config, ModelConfig, OptimConfig, TaskConfig
from gm_train.model.build_model import build_model
from gm_train.model.classes import Classes
from gm_train.model.genemamba import GeneMamba
from gm_train.optim import build_optimizer, learning_rate, parameter_groups, set_learning_rate


@pytest.mark.parametrize("norm", ["none", "pre"])
def test_only_matrices_decay(norm: str) -> None:
    model = GeneMamba(ModelConfig(d_model=32, n_layers=2, head_dim=16, norm=norm), 50)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, OptimConfig()))
    assert len(decayed) + len(kept) == len(names)
    for name in decayed:
        assert name.endswith("weight")
        assert "norm" not in name
    for part in ("A_log", "dt_bias", "bias", "norm"):
        assert any(part in name for name in kept)
    assert any(name.endswith(".D") for name in kept)
    assert any("in_proj" in name for name in decayed)


def test_schedule_warms_up_falls_and_stays() -> None:
    config = OptimConfig(lr=1.0, min_lr_ratio=0.1, warmup_steps=10, schedule_steps=110)
    rates = [learning_rate(step, config) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == rates[199] == pytest.approx(0.1)


@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_does_not_override_optim_fused(tmp_path: Path, fused: bool) -> None:
    """`optim.fused` may change between two starts of a run; the steps are the same."""

    def start(fused: bool) -> tuple[GeneMamba, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = GeneMamba(ModelConfig(d_model=8, n_layers=1, head_dim=8, d_state=4), 12)
        return model, build_optimizer(model, OptimConfig(fused=fused))

    def step(model: GeneMamba, optimizer: torch.optim.AdamW) -> None:
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.1 + number)
        optimizer.step()

    before, after = start(not fused), start(fused)
    step(*before)
    save_by_name(tmp_path / "state", *before)
    load_by_name(tmp_path / "state", *after)
    assert {bool(group["fused"]) for group in after[1].param_groups} == {fused}
    for model, optimizer in (before, after):
        step(model, optimizer)
    for a, b in zip(before[0].parameters(), after[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_classifier_has_a_learning_rate_of_its_own() -> None:
    config = Config(
        model=ModelConfig(d_model=8, n_layers=1, head_dim=8, d_state=4), task=TaskConfig("classify", "kind")
    )
    model = build_model(config, 12, Classes("kind", ("a", "b"), (3, 4)))
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3), head_lr_factor=5.0)
    names = {id(p): name for name, p in model.named_parameters()}
    is_head = [{names[id(p)].startswith("classifier.") for p in group["params"]} for group in optimizer.param_groups]
    assert is_head == [{False}, {False}, {True}, {True}]
    for rate in (1e-3, 2e-4):
        set_learning_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate, 5 * rate, 5 * rate]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.1, 0.0]
    model.requires_grad_(False)
    assert model.classifier is not None
    model.classifier.requires_grad_(True)
    assert len(build_optimizer(model, OptimConfig(), 5.0).param_groups) == 2

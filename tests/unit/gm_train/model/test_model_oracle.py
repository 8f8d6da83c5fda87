"""Outputs and gradients of the model against the step-by-step oracle, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gm_train.config.schema import ModelConfig
from tests.support import oracle
from tests.support.small_models import (
    VARIANTS,
    VOCABULARY,
    configs,
    pack,
    packed_lengths,
    random_cells,
    random_model,
    relative_error,
    seeds,
    small_config,
)

TOLERANCE = 1e-10  # relative


def check_against_oracle(config: ModelConfig, lengths: list[list[int]], tail: int, seed: int) -> None:
    model = random_model(config, seed)
    rows = [random_cells(row, seed + r) for r, row in enumerate(lengths)]
    cells = [cell for row in rows for cell in row]
    input_ids, segment = pack(rows, tail)
    weights = torch.randn(sum(map(len, cells)), VOCABULARY, dtype=torch.float64)

    states = model(input_ids, segment)[segment > 0]
    logits = model.logits(states)
    gradients = torch.autograd.grad((logits * weights).sum(), list(model.parameters()), allow_unused=True)

    parameters = dict(model.named_parameters())
    expected_states = torch.cat([oracle.states(cell, parameters, config) for cell in cells])
    expected = oracle.logits(expected_states, parameters, config)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), list(model.parameters()), allow_unused=True)

    assert relative_error(states, expected_states) < TOLERANCE
    assert relative_error(logits, expected) < TOLERANCE
    for name, gradient, wanted in zip(parameters, gradients, expected_gradients, strict=True):
        assert gradient is not None, name
        assert wanted is not None, name
        assert relative_error(gradient, wanted) < TOLERANCE, name


@settings(max_examples=100)
@given(config=configs, lengths=packed_lengths, tail=st.integers(0, 9), seed=seeds)
def test_outputs_and_gradients_equal_the_oracle(
    config: ModelConfig, lengths: list[list[int]], tail: int, seed: int
) -> None:
    check_against_oracle(config, lengths, tail, seed)


@pytest.mark.parametrize("norm", ["none", "pre"])
@pytest.mark.parametrize(("arch", "aggregation"), VARIANTS)
def test_every_variant_equals_the_oracle(arch: str, aggregation: str, norm: str) -> None:
    config = small_config(arch=arch, aggregation=aggregation, norm=norm)
    check_against_oracle(config, [[9, 1, 4], [6]], tail=3, seed=1)


def test_one_cell_over_many_chunks_equals_the_oracle() -> None:
    check_against_oracle(small_config(n_layers=1), [[61]], tail=0, seed=2)


def test_the_oracle_notices_a_wrong_boundary() -> None:
    """Two cells passed as one must differ from the oracle's result, or the tests above prove nothing."""
    config = small_config()
    model = random_model(config, seed=3)
    cells = random_cells([5, 6], seed=3)
    input_ids, _ = pack([[torch.cat(cells)]], tail=0)
    parameters = dict(model.named_parameters())
    expected = torch.cat([oracle.states(cell, parameters, config) for cell in cells])
    assert relative_error(model(input_ids, torch.ones_like(input_ids))[0], expected) > 1e-3

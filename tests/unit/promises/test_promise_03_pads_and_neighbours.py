"""Promise 3: a cell's outputs are the same alone, padded to any length, or packed in a row with other cells."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gm_train.config.schema import ModelConfig
from gm_train.model.genemamba import GeneMamba, cell_embeddings
from tests.support.small_models import (
    VOCABULARY,
    configs,
    pack,
    random_cells,
    random_model,
    relative_error,
    seeds,
    small_config,
)

FLOAT64, FLOAT32 = 1e-12, 1e-5  # relative; at another position in a chunk the order of summation differs


def outputs(model: GeneMamba, rows: list[list[Tensor]], tail: int) -> list[Tensor]:
    """States of each cell, in the order of rows and cells."""
    input_ids, segment = pack(rows, tail)
    with torch.no_grad():
        states = model(input_ids, segment)
    assert torch.isfinite(states).all()
    return [states[r][segment[r] == s] for r, row in enumerate(rows) for s in range(1, len(row) + 1)]


@settings(max_examples=60)
@given(
    config=configs,
    dtype=st.sampled_from([torch.float64, torch.float32]),
    length=st.integers(1, 40),
    before=st.lists(st.integers(1, 20), max_size=2),
    after=st.lists(st.integers(1, 20), max_size=2),
    tail=st.integers(0, 40),
    seed=seeds,
)
def test_alone_padded_or_packed_a_cell_is_the_same(
    config: ModelConfig, dtype: torch.dtype, length: int, before: list[int], after: list[int], tail: int, seed: int
) -> None:
    config = dataclasses.replace(config, d_model=16, head_dim=8, n_heads=2)
    model = random_model(config, seed, dtype)
    (cell,) = random_cells([length], seed)
    neighbours = random_cells(before + after, seed + 1)
    row = [*neighbours[: len(before)], cell, *neighbours[len(before) :]]
    (alone,) = outputs(model, [[cell]], tail=0)
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32
    assert relative_error(outputs(model, [[cell]], tail)[0], alone) < tolerance
    assert relative_error(outputs(model, [row], tail)[len(before)], alone) < tolerance


@settings(max_examples=40)
@given(config=configs, lengths=st.lists(st.integers(1, 20), min_size=3, max_size=3), seed=seeds)
def test_other_neighbours_of_the_same_lengths_change_not_one_bit(
    config: ModelConfig, lengths: list[int], seed: int
) -> None:
    model = random_model(config, seed, torch.float32)
    left, cell, right = random_cells(lengths, seed)
    other_left, _, other_right = random_cells(lengths, seed + 1)
    assert torch.equal(
        outputs(model, [[left, cell, right]], tail=3)[1], outputs(model, [[other_left, cell, other_right]], tail=3)[1]
    )


@settings(max_examples=40)
@given(config=configs, lengths=st.lists(st.integers(1, 20), min_size=3, max_size=3), seed=seeds)
def test_no_gradient_passes_between_cells_or_into_the_tail(config: ModelConfig, lengths: list[int], seed: int) -> None:
    model = random_model(dataclasses.replace(config, tie_output=False), seed)
    half = (VOCABULARY - 2) // 2
    left, cell, right = (2 + others % half for others in random_cells(lengths, seed))
    cell = cell + half  # only this cell has genes of the upper half
    input_ids, segment = pack([[left, cell, right]], tail=5)
    model(input_ids, segment)[segment == 2].sin().sum().backward()
    assert model.embedding.weight.grad is not None
    reached = model.embedding.weight.grad.abs().sum(1) > 0
    assert reached[cell].all()
    assert not reached[: 2 + half].any()


@pytest.mark.parametrize("arch", ["bimamba", "transformer"])
def test_the_tokens_of_the_tail_change_nothing(arch: str) -> None:
    model = random_model(small_config(arch=arch), seed=0)
    input_ids, segment = pack([random_cells([7, 5], seed=0)], tail=9)
    disturbed = torch.where(segment == 0, 1 + torch.arange(len(segment[0])) % (VOCABULARY - 1), input_ids)
    with torch.no_grad():
        assert torch.equal(model(input_ids, segment)[segment > 0], model(disturbed, segment)[segment > 0])


@pytest.mark.parametrize("arch", ["bimamba", "transformer"])
def test_rows_of_one_batch_are_independent(arch: str) -> None:
    model = random_model(small_config(arch=arch), seed=0)
    cells = random_cells([11, 6, 8], seed=0)
    together = outputs(model, [[cells[0]], [cells[1], cells[2]]], tail=2)
    apart = outputs(model, [[cells[0]]], tail=5) + outputs(model, [[cells[1], cells[2]]], tail=2)
    for a, b in zip(together, apart, strict=True):
        assert relative_error(a, b) < FLOAT64


@pytest.mark.parametrize("arch", ["bimamba", "transformer"])
def test_a_shared_segment_number_is_noticed(arch: str) -> None:
    """The same row with one segment number for both cells must differ, or the tests above prove nothing."""
    model = random_model(small_config(arch=arch), seed=0)
    input_ids, segment = pack([random_cells([7, 5], seed=0)], tail=0)
    with torch.no_grad():
        assert relative_error(model(input_ids, torch.ones_like(segment)), model(input_ids, segment)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cell_embeddings_are_means_over_tokens_in_order_of_row_and_segment(dtype: torch.dtype) -> None:
    n_cells = [2, 1, 3]
    _, segment = pack([random_cells(lengths, seed=0) for lengths in ([3, 1], [4], [1, 1, 2])], tail=2)
    states = torch.randn(*segment.shape, 5).to(dtype)
    expected = [states[r][segment[r] == s].double().mean(0) for r, n in enumerate(n_cells) for s in range(1, n + 1)]
    embeddings = cell_embeddings(states, segment)
    assert embeddings.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(embeddings.double(), torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert cell_embeddings(states, torch.zeros_like(segment)).shape == (0, 5)

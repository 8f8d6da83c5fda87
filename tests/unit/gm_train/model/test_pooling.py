"""Each pooling against a loop over tokens, for rows with several cells and unused tails."""

import math

import pytest
import torch
from torch import Tensor

from gm_train.cli.main import build_parser
from gm_train.model.genemamba import cell_embeddings
from gm_train.model.pooling import POOLS

SEGMENT = torch.tensor([[1, 1, 1, 2, 0, 0], [1, 1, 1, 1, 1, 1], [1, 2, 2, 3, 3, 3]])
CELLS = [(0, 0, 3), (0, 3, 4), (1, 0, 6), (2, 0, 1), (2, 1, 3), (2, 3, 6)]


def slowly(pool: str, states: Tensor) -> Tensor:
    """Pool the states (n_tokens, d_model) of one cell."""
    if pool == "max":
        return torch.stack([max(column, key=float) for column in states.T])
    weights = [1 / math.log2(1 + rank) if pool == "rank" else 1.0 for rank in range(1, len(states) + 1)]
    return sum(weight * state for weight, state in zip(weights, states, strict=True)) / sum(weights)


@pytest.mark.parametrize("pool", POOLS)
def test_pooling_agrees_with_a_loop_over_tokens(pool: str) -> None:
    states = torch.randn(*SEGMENT.shape, 5, generator=torch.manual_seed(0))
    expected = torch.stack([slowly(pool, states[row, first:last]) for row, first, last in CELLS])
    torch.testing.assert_close(cell_embeddings(states, SEGMENT, pool), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_rows_without_cells_give_nothing(pool: str) -> None:
    assert cell_embeddings(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64), pool).shape == (0, 5)
    some = cell_embeddings(torch.ones(2, 3, 5), torch.tensor([[0, 0, 0], [1, 0, 0]]), pool)
    torch.testing.assert_close(some, torch.ones(1, 5))


def test_the_command_offers_every_pooling() -> None:
    for pool in POOLS:
        assert build_parser().parse_args(["embed", "run", "in.h5ad", "out.h5ad", "--pool", pool]).pool == pool

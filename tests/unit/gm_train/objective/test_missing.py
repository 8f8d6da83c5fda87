"""Missing-gene modelling: how cells are divided, and its loss beside a plain reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from data_shards.hashing import fold, mix64_int
from data_shards.rows.pool import Rows
from gm_train.config.check import config_problems
from gm_train.config.schema import Config, ObjectiveConfig
from gm_train.model import output_layer
from gm_train.objective.batches import join, make_examples, split
from gm_train.objective.cell_keys import cell_keys
from gm_train.objective.loss import loss_sums
from gm_train.objective.missing import divide_cells
from gm_train.objective.recipe import Recipe
from tests.support.small_models import random_model, small_config
from tests.unit.gm_train.objective.test_batches import LENGTH, SIZE, recipe, same, some_rows

MISSING = Recipe(ObjectiveConfig(language="missing"), 3, SIZE, LENGTH, None)


def of_cells(rows: Rows) -> dict[tuple[int, int], list[list[int]]]:
    """The tokens of the parts of each cell, by its block's place and its number there."""
    found: dict[tuple[int, int], list[list[int]]] = {}
    ends = np.cumsum(rows.lengths)
    for place, cell, end, length in zip(rows.places, rows.cells, ends, rows.lengths, strict=True):
        found.setdefault((int(place), int(cell)), []).append(rows.tokens[end - length : end].tolist())
    return found


@settings(max_examples=50)
@given(rows=some_rows())
def test_parts_equal_a_reference_by_plain_hashes(rows: Rows) -> None:
    """Hashes of (seed, place, cell) for the share, and of (seed, place, cell, token in the cell) for the part."""
    divided = divide_cells(rows, MISSING)
    assert divided.cells_of_row.sum() == len(divided.lengths)
    assert len(divided.cells_of_row) == len(rows.cells_of_row)
    found = of_cells(divided)
    keys = cell_keys(3, rows.places, rows.cells).tolist()
    for (where, (cell,)), key, damaged in zip(of_cells(rows).items(), keys, rows.damaged, strict=True):
        if damaged:
            assert found[where] == [cell]
            continue
        share = 0.2 + (0.8 - 0.2) * (mix64_int(key ^ fold(31)) >> 11) * 2.0**-53
        select = mix64_int(key ^ fold(32))
        first = [(mix64_int(select ^ i) >> 11) * 2.0**-53 < share for i in range(len(cell))]
        parts = [[t for t, f in zip(cell, first, strict=True) if f is which] for which in (True, False)]
        assert found[where] == [part for part in parts if part]


def test_shares_are_those_that_were_asked_for() -> None:
    n, length = 2000, 200
    tokens = np.tile(np.arange(2, 2 + length), n).astype(np.uint16)
    rows = Rows(tokens, np.full(n, length), np.zeros(n, int), np.arange(n), np.zeros(n, bool), np.full(n, 1))
    wide = Recipe(ObjectiveConfig(language="missing", shown=[0.3, 0.5]), 0, 2 + length, length, None)
    shares = divide_cells(rows, wide).lengths[::2] / length
    assert abs(shares.mean() - 0.4) < 0.005
    spread = np.sqrt(0.2**2 / 12 + 0.4 * 0.6 / length)  # of an even draw, and of the genes
    assert abs(shares.std() - spread) < 0.005


@settings(max_examples=50)
@given(rows=some_rows(), cut=st.integers(0, 6), micro_rows=st.integers(1, 7))
def test_grouping_changes_nothing(rows: Rows, cut: int, micro_rows: int) -> None:
    whole, masked = make_examples(rows, MISSING), make_examples(rows, recipe())
    parts = [make_examples(part, MISSING) for part in (rows.part(0, cut), rows.part(cut, len(rows))) if len(part)]
    assert same(join(parts), whole)
    assert (whole.n_cells, whole.n_tokens, whole.sample_hash) == (masked.n_cells, masked.n_tokens, masked.sample_hash)
    batches = split(whole, micro_rows, {})
    assert np.array_equal(np.concatenate([batch.targets.numpy() for batch in batches]), whole.targets)
    # Both parts of a cell are in one row, and so in one micro-batch.
    for batch in batches:
        at = set(batch.target_at.tolist())
        assert {a + t for a, t in zip(batch.target_at.tolist(), batch.targets.tolist(), strict=True)} == at


def reference(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """The sum over parts, one part at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for where, parts in of_cells(divide_cells(rows, MISSING)).items():
        if len(parts) < 2 or rows.damaged[list(of_cells(rows)).index(where)]:
            continue
        for shown, missing in (parts, parts[::-1]):
            ids = torch.tensor([shown])
            logits = model.logits(model(ids, torch.ones_like(ids))[0].mean(0))
            logits = logits.index_fill(0, torch.tensor([0, 1, *shown]), -torch.inf)
            total = total - F.log_softmax(logits, 0)[missing].mean()
    return total


@pytest.mark.parametrize("chunk", [2**25, 1])
@settings(max_examples=15, deadline=None)
@given(rows=some_rows(), micro_rows=st.integers(1, 7))
def test_loss_and_gradients_equal_a_reference(chunk: int, rows: Rows, micro_rows: int) -> None:
    """Part by part, without packing, without chunks of logits and by autograd."""
    model = random_model(small_config(), 0, torch.float64, vocabulary_size=SIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_layer, "LOGITS_AT_A_TIME", chunk)
        total = torch.zeros((), dtype=torch.float64)
        for batch in split(make_examples(rows, MISSING), micro_rows, {}):
            lang, pathway = loss_sums(model, batch, MISSING.objective)
            total = total + lang
            assert pathway == 0
    expected = reference(model, rows)
    assert torch.allclose(total, expected, rtol=1e-10)
    if not total.requires_grad or not expected.requires_grad:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(total, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        a, b = (torch.zeros(()) if grad is None else grad for grad in (a, b))
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("shown", [[0.0, 0.5], [0.6, 0.4], [0.5], [0.5, 1.0]])
def test_shares_that_cannot_be_used(shown: list[float]) -> None:
    config = Config()
    config.objective.shown, config.objective.language = shown, "masked"
    assert config_problems(config) == config_problems(Config())
    config.objective.language = "missing"
    assert any("objective.shown" in problem for problem in config_problems(config))

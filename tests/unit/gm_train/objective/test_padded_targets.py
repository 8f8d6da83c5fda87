"""Padded targets: one size in all steps, and the same loss and gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_shards.rows.pool import Rows
from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.batches import MicroBatch, make_examples, split
from gm_train.objective.cell_classes import CellClasses
from gm_train.objective.loss import loss_sums
from gm_train.objective.missing import MISSING
from gm_train.objective.padded_targets import most_targets, padded_targets
from gm_train.objective.recipe import Recipe
from tests.support.small_models import VOCABULARY, random_model, small_config

LENGTH, ROWS = 64, 3


def recipe(language: str, rate: float = 0.15) -> Recipe:
    return Recipe(ObjectiveConfig(language=language, mask_rate=rate), 1, VOCABULARY, LENGTH, None)


def batches(recipe: Recipe, n_steps: int) -> list[MicroBatch]:
    """Steps of three full rows; each row has two cells of other lengths."""
    rng = np.random.default_rng(0)
    found = []
    for step in range(n_steps):
        first = rng.integers(20, 44, ROWS)
        lengths = np.stack([first, LENGTH - first - rng.integers(0, 3, ROWS)], 1).flatten()
        tokens = rng.integers(2, VOCABULARY, lengths.sum()).astype(np.uint16)
        n = len(lengths)
        rows = Rows(tokens, lengths, np.full(n, step), np.arange(n), np.zeros(n, bool), np.full(ROWS, 2))
        found += split(make_examples(rows, recipe), ROWS, {})
    return found


@pytest.mark.parametrize("language", ["masked", "next_token"])
def test_every_step_has_the_same_shapes(language: str) -> None:
    made = batches(recipe(language), 40)
    padded = [padded_targets(batch, recipe(language)) for batch in made]
    assert len({len(batch.targets) for batch in made}) > 3
    cap = most_targets(recipe(language), ROWS * LENGTH)
    assert {(len(batch.targets), len(batch.target_at)) for batch in padded} == {(cap, cap)}
    for before, after in zip(made, padded, strict=True):
        n = len(before.targets)
        assert torch.equal(after.targets[:n], before.targets)
        assert torch.equal(after.target_at[:n], before.target_at)
        assert (after.targets[n:] == -1).all()
        assert after.info == before.info  # pads are not counted


@pytest.mark.parametrize("n_targets", [0, 64, 65])
def test_no_targets_and_more_than_the_cap(n_targets: int) -> None:
    """An unlikely number of targets is padded to a multiple of the cap."""
    (batch,) = batches(recipe("masked"), 1)
    cap = most_targets(recipe("masked"), ROWS * LENGTH)
    assert cap == 64
    some = replace(batch, targets=torch.ones(n_targets, dtype=torch.int64), target_at=torch.arange(n_targets))
    assert len(padded_targets(some, recipe("masked")).targets) == (128 if n_targets == 65 else 64)


def test_the_cap_is_not_reached_in_practice() -> None:
    """The number of masked genes of 32 rows of 2,048 tokens, drawn many times."""
    n_slots = 32 * 2048
    cap = most_targets(recipe("masked"), n_slots)
    drawn = np.random.default_rng(0).binomial(n_slots, 0.15, 100_000)
    assert drawn.max() < cap < 1.07 * n_slots * 0.15
    assert most_targets(recipe("masked", 1.0), n_slots) == n_slots
    assert most_targets(recipe("masked", 0.0), n_slots) > 0


@pytest.mark.parametrize("language", ["masked", "missing"])
def test_loss_and_gradients_are_the_same(language: str) -> None:
    (batch,) = batches(recipe(language), 1)
    padded = padded_targets(batch, recipe(language))
    assert len(padded.targets) > len(batch.targets)
    results = []
    for one in (batch, padded):
        model = random_model(small_config(), seed=0)
        lang, _ = loss_sums(model, one, recipe(language).objective)
        lang.backward()  # type: ignore[no-untyped-call]
        results.append([lang.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) > 5
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_batches_of_parts_have_few_shapes() -> None:
    made = batches(recipe("missing"), 40)
    padded = [padded_targets(batch, recipe("missing")) for batch in made]
    assert {batch.most_cells for batch in made} == {4}
    assert {(batch.most_cells, len(batch.targets), len(batch.target_at)) for batch in padded} == {(16, 48, 48)}
    assert [batch.info for batch in padded] == [batch.info for batch in made]  # pads are not counted
    none = torch.zeros(0, dtype=torch.int64)
    empty = replace(made[0], targets=none, target_at=none)
    assert padded_targets(empty, recipe("missing")) is empty


def test_targets_of_another_loss_are_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they mean is known to that loss alone."""

    def other_loss(*of_batch: object) -> torch.Tensor:
        raise NotImplementedError

    other = replace(MISSING, loss=other_loss)
    monkeypatch.setattr("gm_train.objective.missing.MISSING", other)
    (batch,) = batches(recipe("missing"), 1)
    assert padded_targets(batch, recipe("missing")) is batch


def test_labels_are_not_padded() -> None:
    (batch,) = batches(recipe("masked"), 1)
    classes = CellClasses.__new__(CellClasses)  # only its presence matters
    assert padded_targets(batch, replace(recipe("masked"), cell_classes=classes)) is batch

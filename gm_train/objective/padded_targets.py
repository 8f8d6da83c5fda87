"""Pad the targets of a micro-batch to a size that does not change from step to step.

On a GPU a new size costs: memory of that size is searched or allocated, and nothing that was recorded for one size can
be replayed for another.
"""

import math
from dataclasses import replace

import torch

from gm_train.config.parts import load_part
from gm_train.objective.batches import MicroBatch
from gm_train.objective.missing import missing_loss
from gm_train.objective.recipe import Objective, Recipe
from gm_train.objective.token_loss import token_loss

#: The cap of masked genes lies so many standard deviations above their mean number: one batch in 10^9 has more.
_DEVIATIONS = 6
_MULTIPLE = 64
#: `most_cells` of batches of parts is raised to a multiple of this.
_PARTS = 16


def most_targets(recipe: Recipe, n_slots: int) -> int:
    """The number of targets to which micro-batches are padded.

    Args:
        recipe: what is drawn.
        n_slots: positions of a micro-batch's rows.
    """
    if recipe.objective.language != "masked":
        return n_slots  # a state predicts one token
    rate = recipe.objective.mask_rate
    likely = n_slots * rate + _DEVIATIONS * math.sqrt(n_slots * rate * (1 - rate))
    return min(n_slots, _MULTIPLE * max(1, math.ceil(likely / _MULTIPLE)))


def padded_targets(batch: MicroBatch, recipe: Recipe) -> MicroBatch:
    """Pad the targets: tokens with -1, which counts for nothing; parts of cells by repeating the last one.

    `missing_loss` counts a part once, however often it is there. The number of parts follows from `most_cells`, which
    is raised to a multiple of 16: few sizes, if not one. Classes and the targets of other losses are returned
    unchanged, and so is a batch without a part.

    Args:
        batch: in the machine's memory.
        recipe: what made it.
    """
    language: Objective = load_part("objective.language", recipe.objective.language)
    if recipe.cell_classes is not None:
        return batch
    if language.loss is missing_loss:
        return _padded_parts(batch)
    if language.loss is not token_loss:
        return batch
    n_slots, n = batch.input_ids.numel(), len(batch.targets)
    cap = most_targets(recipe, n_slots)
    n_pads = -n % cap if n else cap
    # Any positions do, but sums of gradients into one position would wait for each other.
    at = torch.arange(n_pads) % n_slots
    return replace(
        batch,
        target_at=torch.cat([batch.target_at, at]),
        targets=torch.cat([batch.targets, torch.full((n_pads,), -1)]),
    )


def _padded_parts(batch: MicroBatch) -> MicroBatch:
    if not len(batch.targets):
        return batch
    most_cells = _PARTS * math.ceil(batch.most_cells / _PARTS)
    n_pads = len(batch.input_ids) * most_cells - len(batch.targets)
    at, targets = (torch.cat([one, one[-1:].expand(n_pads)]) for one in (batch.target_at, batch.targets))
    return replace(batch, target_at=at, targets=targets, most_cells=most_cells)

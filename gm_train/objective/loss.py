"""The loss of a micro-batch, as sums that the step divides by its counts."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from gm_train.config.parts import load_part
from gm_train.config.schema import ObjectiveConfig
from gm_train.model.genemamba import GeneMamba, pool_cells
from gm_train.objective.batches import MicroBatch
from gm_train.objective.pathway import pathway_loss_sum
from gm_train.objective.recipe import Objective


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which matrix products are computed in the given precision; parameters and decay stay float32.

    Args:
        precision: `trainer.precision`; "bf16" turns on autocast, "fp32" changes nothing.
        device: where the computation runs.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def target_logits(model: GeneMamba, states: Tensor, batch: MicroBatch) -> Tensor:
    """Logits of the labelled cells of a micro-batch: float32 (n_targets, n_classes), in the order of its targets.

    Args:
        model: has a classifier.
        states: (rows, length, d_model), of the micro-batch.
        batch: the micro-batch.
    """
    row, number = batch.target_at // batch.segment.shape[1], batch.segment.flatten()[batch.target_at]
    return model.class_logits(pool_cells(states, batch.segment, batch.most_cells)[row, number - 1])


def loss_sums(model: GeneMamba, batch: MicroBatch, objective: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Sum L_lang over the targets and L_pathway over the pairs of a micro-batch.

    With a classifier, the first sum is the cross-entropy of the labelled cells, weighted by class, and the second is 0.

    Args:
        model: the model.
        batch: the micro-batch.
        objective: names L_lang, and has the temperature of L_pathway.

    Returns:
        Two scalars.
    """
    states = model(batch.input_ids, batch.segment)
    if model.classifier is not None:
        logits = target_logits(model, states, batch)
        loss = functional.cross_entropy(logits, batch.targets, model.classifier.class_weights, reduction="sum")
        return loss, loss.new_zeros(())
    language: Objective = load_part("objective.language", objective.language)
    lang = language.loss(model, states, batch)
    if batch.drawn.shape[1] == 0:
        return lang, lang.new_zeros(())
    return lang, pathway_loss_sum(states.flatten(0, 1), batch.drawn, batch.positive, objective.temperature)

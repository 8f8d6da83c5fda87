"""The loss of a micro-batch, as sums that the step divides by its counts."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gm_train.model.genemamba import GeneMamba
from gm_train.objective.batches import MicroBatch
from gm_train.objective.pathway import pathway_loss_sum


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Context in which matrix products are computed in the given precision; parameters and decay stay float32.

    Args:
        precision: `trainer.precision`; "bf16" turns on autocast, "fp32" changes nothing.
        device: where the computation runs.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def loss_sums(model: GeneMamba, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Sum L_lang over the targets and L_pathway over the pairs of a micro-batch.

    Args:
        model: the model.
        batch: the micro-batch.
        temperature: tau of L_pathway.

    Returns:
        Two scalars.
    """
    states = model(batch.input_ids, batch.segment).flatten(0, 1)
    # The output layer gets only the positions that predict.
    lang = model.language_loss(states[batch.target_at], batch.targets)
    if batch.drawn.shape[1] == 0:
        return lang, lang.new_zeros(())
    return lang, pathway_loss_sum(states, batch.drawn, batch.positive, temperature)

"""The loss of objectives in which states predict single tokens."""

from torch import Tensor

from gm_train.model.genemamba import GeneMamba
from gm_train.objective.batches import MicroBatch


def token_loss(model: GeneMamba, states: Tensor, batch: MicroBatch) -> Tensor:
    """Sum the cross-entropy of the target tokens, a scalar in nats.

    Args:
        model: its output layer predicts.
        states: (rows, length, d_model), of the micro-batch.
        batch: the micro-batch.
    """
    # The output layer gets only the positions that predict.
    return model.language_loss(states.flatten(0, 1)[batch.target_at], batch.targets)

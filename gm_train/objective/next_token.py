"""Next-token prediction, for the unidirectional model."""

import numpy as np
import numpy.typing as npt

from data_shards.hashing import U64
from gm_train.objective.recipe import Objective, Prediction, Recipe
from gm_train.objective.token_loss import token_loss

I64 = npt.NDArray[np.int64]


def next_token_targets(lengths: I64) -> tuple[I64, I64]:
    """Find the targets of next-token prediction: token t of a cell is predicted from the cell's state at t - 1.

    The first token of a cell has no state before it and is not predicted.

    Args:
        lengths: int64 (n_cells,), tokens of each cell; cells lie one after another.

    Returns:
        Positions of the states and positions of the predicted tokens, both int64 (sum of lengths - n_cells,).
    """
    is_first = np.zeros(int(lengths.sum()), dtype=bool)
    is_first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    predicted = np.flatnonzero(~is_first)
    return predicted - 1, predicted


def predict_next_tokens(tokens: I64, lengths: I64, keys: U64, recipe: Recipe) -> Prediction:
    """Show every token; each but the first of a cell is predicted from the state before it.

    Args:
        tokens: int64 (n_tokens,), cells one after another.
        lengths: int64 (n_cells,), tokens of each cell.
        keys: unused, since nothing is drawn.
        recipe: unused.
    """
    states, targets = next_token_targets(lengths)
    return Prediction(tokens, np.zeros(len(tokens), dtype=bool), states, tokens[targets])


NEXT_TOKEN = Objective(predict_next_tokens, token_loss)

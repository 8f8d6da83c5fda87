"""L_lang: which positions are predicted, and from which states."""

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


def next_token_targets(lengths: I64) -> tuple[I64, I64]:
    """For next-token prediction: token t of a cell is predicted from the state at t - 1 of the same cell.

    The first token of a cell has nothing before it and is not predicted.

    Args:
        lengths: int64 (n_cells,), cells one after another.

    Returns:
        Positions of the states and positions of the predicted tokens, both int64 (sum of lengths - n_cells,).
    """
    is_first = np.zeros(int(lengths.sum()), dtype=bool)
    is_first[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    predicted = np.flatnonzero(~is_first)
    return predicted - 1, predicted

"""What an objective is given, and what it returns.

To add an objective, write a function from tokens and a `Recipe` to a `Prediction`, like those in `masking.py`,
`next_token.py` and `missing.py`, make an `Objective` of it, and list that in `config/parts.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_shards.hashing import U64
from data_shards.rows.pool import Rows
from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.cell_classes import CellClasses
from gm_train.objective.pathway import PathwayIndex

if TYPE_CHECKING:
    from torch import Tensor

    from gm_train.model.genemamba import GeneMamba

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """The settings that turn rows into training examples.

    Attributes:
        objective: the objective's settings.
        seed: the run's seed.
        vocabulary_size: number of tokens, special ones included.
        row_length: positions of a row.
        pathways: gene sets; None trains without L_pathway.
        cell_classes: the class of every cell, for a run that learns a label; None for other runs.
    """

    objective: ObjectiveConfig
    seed: int
    vocabulary_size: int
    row_length: int
    pathways: PathwayIndex | None
    cell_classes: CellClasses | None = None


@dataclass(frozen=True)
class Prediction:
    """The tokens of some cells that a model sees, and those that it has to predict.

    Attributes:
        visible: int64 (n_tokens,), the token that the model sees at each position.
        hidden: bool (n_tokens,), the positions that do not show their own token; L_pathway leaves them out.
        states: int64 (n_targets,), positions of the states that predict, ascending.
        targets: int64 (n_targets,), what each predicts, in the terms of the objective's loss: usually a token.
    """

    visible: I64
    hidden: npt.NDArray[np.bool_]
    states: I64
    targets: I64


@dataclass(frozen=True)
class Objective:
    """What is learned from the genes of a cell.

    Attributes:
        predict: decides what the model sees and predicts, `(tokens, lengths, keys, recipe) -> Prediction`: tokens int64
            (n_tokens,), cells one after another; lengths int64 (n_cells,); keys uint64 (n_cells,), from `cell_keys`.
        loss: sums the loss over the targets of a `MicroBatch`, `(model, states, batch) -> scalar`, in nats; states are
            (rows, length, d_model).
        divide: cuts cells into parts that the model sees as cells of their own; None leaves them whole.
    """

    predict: Callable[[I64, I64, U64, Recipe], Prediction]
    loss: "Callable[[GeneMamba, Tensor, Any], Tensor]"
    divide: Callable[[Rows, Recipe], Rows] | None = None

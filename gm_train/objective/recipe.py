"""What an objective is given, and what it returns.

To add an objective, write a function from tokens and a `Recipe` to a `Prediction`, like those in `masking.py` and
`next_token.py`, and list it in `config/parts.py`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.cell_classes import CellClasses
from gm_train.objective.pathway import PathwayIndex

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
        targets: int64 (n_targets,), positions of the tokens that they predict.
    """

    visible: I64
    hidden: npt.NDArray[np.bool_]
    states: I64
    targets: I64

"""What an objective is given, and what it returns: the types between `batches.py` and the files of the objectives."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.pathway import PathwayIndex

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """What turns rows into training examples.

    Attributes:
        objective: the objective's settings.
        seed: the run's seed.
        vocabulary_size: number of tokens.
        row_length: tokens of a row.
        pathways: gene sets, or None without L_pathway.
    """

    objective: ObjectiveConfig
    seed: int
    vocabulary_size: int
    row_length: int
    pathways: PathwayIndex | None


@dataclass(frozen=True)
class Prediction:
    """What a model sees of some cells, and what it is to predict.

    Attributes:
        visible: int64 (n_tokens,), what each token shows.
        hidden: bool (n_tokens,), the tokens that do not show themselves: L_pathway leaves them out.
        states: int64 (n_targets,), the tokens whose states predict, ascending.
        targets: int64 (n_targets,), the tokens that they predict.
    """

    visible: I64
    hidden: npt.NDArray[np.bool_]
    states: I64
    targets: I64

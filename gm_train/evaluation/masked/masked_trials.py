"""Held-out cells with hidden genes, and the model and controls that guess them: what masked tasks have in common."""

from collections.abc import Iterator

import numpy as np

from gm_train.evaluation.figures import BY_RANK, FREQUENCY, MODEL, ORDER, RANDOM
from gm_train.evaluation.masked.frequency_controls import Frequency, FrequencyByRank
from gm_train.evaluation.masked.masked_genes import MaskedCells, Predictor, mask_cells, model_predictor
from gm_train.evaluation.masked.order_control import OrderControl
from gm_train.evaluation.task import Subject
from gm_train.objective.cell_keys import cell_keys

#: Share of a cell's genes that is hidden. It does not depend on training, so that scores of runs can be compared.
MASK_RATE = 0.15
#: The controls of the model's guesses.
CONTROLS = (ORDER, BY_RANK, FREQUENCY, RANDOM)


class MaskedTrials:
    """One trial for each mask seed: the same hidden genes for the model and all controls.

    Attributes:
        order: the order control.
    """

    def __init__(self, subject: Subject, ranks: str) -> None:
        """Fit the controls to the training cells.

        Args:
            subject: the model and the cells.
            ranks: plain or dithered.
        """
        cells, size = subject.cells, subject.vocabulary_size
        train = cells.ranked(ranks).take(np.flatnonzero(~cells.held_out))
        self._subject = subject
        self._numbers = np.flatnonzero(cells.held_out)
        self._held_out = cells.ranked(ranks).take(self._numbers)
        self.order = OrderControl(train, size, MASK_RATE)
        self._fixed: dict[str, Predictor] = {
            MODEL: model_predictor(subject.model, subject.precision),
            ORDER: self.order,
            BY_RANK: FrequencyByRank(train, size),
            FREQUENCY: Frequency(train, size),
        }

    def __iter__(self) -> Iterator[tuple[MaskedCells, dict[str, Predictor]]]:
        """Yield the masked cells of each seed, and the predictors by name; those of random weights differ by seed."""
        subject = self._subject
        for seed in range(subject.mask_seeds):
            keys = cell_keys(seed, subject.cells.data_set[self._numbers], subject.cells.row[self._numbers])
            masked = mask_cells(self._held_out, keys, subject.vocabulary_size, MASK_RATE)
            random = model_predictor(subject.random_model(seed), subject.precision)
            yield masked, {**self._fixed, RANDOM: random}

"""Small ragged cells and predictors for the tests of the evaluation."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gm_train.evaluation.masked_genes import MaskedCells, mask_cells
from gm_train.evaluation.ragged import Ragged
from gm_train.objective.cell_keys import cell_keys

VOCABULARY = 14


def ragged(cells: list[list[int]]) -> Ragged:
    lengths = [len(cell) for cell in cells]
    tokens = np.array([token for cell in cells for token in cell], dtype=np.uint16)
    return Ragged(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def random_cells(n_cells: int, seed: int, vocabulary_size: int = VOCABULARY) -> Ragged:
    """Cells of different genes, some of them empty."""
    rng = np.random.default_rng(seed)
    genes = np.arange(2, vocabulary_size)
    return ragged([rng.permutation(genes)[: rng.integers(0, len(genes))].tolist() for _ in range(n_cells)])


def mask(cells: Ragged, seed: int = 0, rate: float = 0.3, vocabulary_size: int = VOCABULARY) -> MaskedCells:
    keys = cell_keys(seed, np.zeros(cells.n_cells, dtype=np.int64), np.arange(cells.n_cells))
    return mask_cells(cells, keys, vocabulary_size, rate)


def answers(predictor: object, masked: MaskedCells) -> npt.NDArray[np.float64]:
    """All log probabilities of a predictor, (n_hidden, vocabulary), in the order of the positions."""
    found: list[tuple[npt.NDArray[np.int64], Tensor]] = list(predictor(masked))  # type: ignore[operator]
    positions = np.concatenate([at for at, _ in found])
    values = torch.cat([log_probs for _, log_probs in found]).double().numpy()
    return np.asarray(values[np.argsort(positions)])


def fixed(log_probs: Tensor) -> object:
    """A predictor with the given answers, in the order of the positions."""

    def predict(masked: MaskedCells) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        yield np.flatnonzero(masked.hidden), log_probs

    return predict

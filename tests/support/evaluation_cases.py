"""Small ragged cells, a store and predictors for the tests of the evaluation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.prepare.splits import SplitOptions
from gm_train.cli.main import main
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.masked.masked_genes import MaskedCells, mask_cells
from gm_train.objective.cell_keys import cell_keys
from tests.conftest import Atlas, write_cells
from tests.support.counts_to_stores import build

VOCABULARY = 14


def evaluate(run: Path, atlas: Atlas, *words: str) -> int:
    """Run `gm-train eval` on few cells; return its exit code."""
    return main(["eval", str(run), *map(str, atlas.files), "--max-cells", "80", "--mask-seeds", "2", *words])


def store_with_test_cells(folder: Path) -> Atlas:
    """Write two data sets of 80 genes into a store with training, validation and test cells."""
    files = (write_cells(folder / "first.h5ad", 150, 80, seed=1), write_cells(folder / "second.h5ad", 41, 80, seed=2))
    build(folder, list(files), top_k=48, splits=SplitOptions(by="cell", validation=0.2, test=0.2))
    return Atlas(folder / "s.zarr", files)


def ragged(cells: list[list[int]]) -> Ragged:
    """Convert lists of tokens to ragged cells."""
    lengths = [len(cell) for cell in cells]
    tokens = np.array([token for cell in cells for token in cell], dtype=np.uint16)
    return Ragged(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def random_cells(n_cells: int, seed: int, vocabulary_size: int = VOCABULARY) -> Ragged:
    """Draw cells of distinct genes; some cells are empty.

    Args:
        n_cells: number of cells.
        seed: of the cells.
        vocabulary_size: number of tokens; the first two are special.
    """
    rng = np.random.default_rng(seed)
    genes = np.arange(2, vocabulary_size)
    return ragged([rng.permutation(genes)[: rng.integers(0, len(genes))].tolist() for _ in range(n_cells)])


def mask(cells: Ragged, seed: int = 0, rate: float = 0.3, vocabulary_size: int = VOCABULARY) -> MaskedCells:
    """Mask cells of data set 0.

    Args:
        cells: the cells.
        seed: of the masks.
        rate: share of masked tokens, 0 to 1.
        vocabulary_size: number of tokens.
    """
    keys = cell_keys(seed, np.zeros(cells.n_cells, dtype=np.int64), np.arange(cells.n_cells))
    return mask_cells(cells, keys, vocabulary_size, rate)


def answers(predictor: object, masked: MaskedCells) -> npt.NDArray[np.float64]:
    """All log probabilities of a predictor, float64 (n_hidden, vocabulary), in the order of the positions."""
    batches: list[tuple[npt.NDArray[np.int64], Tensor]] = list(predictor(masked))  # type: ignore[operator]
    positions = np.concatenate([at for at, _ in batches])
    values = torch.cat([log_probs for _, log_probs in batches]).double().numpy()
    return np.asarray(values[np.argsort(positions)])


def fixed(log_probs: Tensor) -> object:
    """Make a predictor that always returns these log probabilities, (n_hidden, vocabulary), by position."""

    def predict(masked: MaskedCells) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        yield np.flatnonzero(masked.hidden), log_probs

    return predict

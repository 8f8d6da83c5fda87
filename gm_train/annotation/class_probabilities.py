"""Probabilities of the classes for embedded cells, and the label that a cell gets."""

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import Checkpoint, best_checkpoint, load_model
from gm_train.config.schema import Config
from gm_train.model.classes import Calibration, Classes
from gm_train.model.genemamba import GeneMamba

F32 = npt.NDArray[np.float32]


def open_annotator(path: Path) -> tuple[Checkpoint, GeneMamba, Tokenizer, Config, Classes]:
    """Open a checkpoint with a classifier, or the best one of a run, with its classes.

    Raises:
        DataError: there is no checkpoint, it is damaged, or its run learned no label.
    """
    checkpoint = best_checkpoint(path)
    classes = checkpoint.classes
    if classes is None:
        raise DataError(
            f"{checkpoint.path}: has no classifier: fine-tune it for a label with `gm-train annotate {checkpoint.path} "
            "CELLS.h5ad --label COLUMN --out OUT`, then predict with OUT"
        )
    return checkpoint, *load_model(checkpoint), classes


def class_probabilities(model: GeneMamba, embeddings: F32, temperature: float) -> F32:
    """Compute the probability of each class for cells that `embed_cells` has embedded by their mean.

    In float64, so that a cell's probabilities do not depend on how many cells are computed together.

    Args:
        model: has a classifier.
        embeddings: float32 (n_cells, d_model); NaN for cells without tokens.
        temperature: what logits are divided by.

    Returns:
        float32 (n_cells, n_classes); NaN for cells without tokens.
    """
    assert model.classifier is not None
    classifier = copy.deepcopy(model.classifier).double().cpu()
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(embeddings).double())
        return torch.softmax(logits / temperature, 1).float().numpy()


def choose_classes(probabilities: F32, threshold: float | None) -> tuple[npt.NDArray[np.int64], F32]:
    """Choose the class of each cell.

    Args:
        probabilities: float32 (n_cells, n_classes), NaN for cells without tokens.
        threshold: smallest probability with which a cell gets a class; None: no cell gets one.

    Returns:
        int64 (n_cells,), the number of the class, -1 for unknown; and float32 (n_cells,), the largest probability, NaN
        for cells without tokens.
    """
    empty = np.isnan(probabilities[:, 0])
    best = np.where(empty, -1, np.nan_to_num(probabilities).argmax(1))
    largest = np.where(empty, np.float32(np.nan), np.nan_to_num(probabilities).max(1))
    sure = ~empty & (largest.astype(np.float64) >= (np.inf if threshold is None else threshold))
    return np.where(sure, best, -1), largest.astype(np.float32)


def calibration_of(checkpoint: Checkpoint, classes: Classes) -> Calibration:
    """The calibration of a checkpoint.

    Raises:
        DataError: the checkpoint was saved without a validation.
    """
    if classes.calibration is None:
        raise DataError(
            f"{checkpoint.path}: was saved without a validation, so its probabilities are not calibrated: give the "
            "run, whose best checkpoint was validated, or train it until there is one"
        )
    return classes.calibration

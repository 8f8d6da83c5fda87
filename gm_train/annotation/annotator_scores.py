"""Score an annotator on held-out cells, beside simpler ways to the same labels."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from data_shards.errors import DataError
from gm_train.annotation.class_probabilities import choose_classes, class_probabilities
from gm_train.checkpoint.find import Checkpoint, load_model
from gm_train.checkpoint.state import hash_weights
from gm_train.config.schema import Config
from gm_train.embedding.embed_cells import F32, embed_cells
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.figures import Row, figures
from gm_train.evaluation.principal_components import principal_components
from gm_train.evaluation.probes.probes import SUBSAMPLE, ProbeSplit, probe
from gm_train.evaluation.task import Subject
from gm_train.model.classes import Calibration, Classes
from gm_train.model.genemamba import GeneMamba
from gm_train.train.validation import macro_f1
from gm_train.weights.init_from import INIT

ANNOTATOR, MAJORITY = "annotator", "largest class"
PROBES = {
    "pretrained": "linear probe of the pretrained embedding",
    "pca": "linear probe of PCA",
    "random": "linear probe of random weights",
}
PROBE_SEEDS = 3


@dataclass(frozen=True)
class Annotator:
    """What is scored.

    Attributes:
        checkpoint: the annotator's.
        model: with its classifier, in evaluation mode.
        config: of its run.
        classes: what it predicts.
        calibration: its temperature.
    """

    checkpoint: Checkpoint
    model: GeneMamba
    config: Config
    classes: Classes
    calibration: Calibration


def score_annotator(annotator: Annotator, cells: EvaluationCells, ranks: str, advance: Callable[[], object]) -> Row:
    """Score an annotator and its controls on held-out cells.

    All are scored on the same held-out cells of the learned classes. The annotator has learned from all training cells
    of these classes, the probes learn from a share of those that were read.

    Args:
        annotator: what is scored.
        cells: training and held-out cells with labels.
        ranks: "plain" or "dithered", the ranks that the model was trained on.
        advance: called after each of `n_scores` scores.

    Returns:
        Everything in the table, ready for JSON.

    Raises:
        DataError: no held-out cell has one of the classes.
    """
    classes = annotator.classes
    assert cells.labels is not None
    number_of = {name: number for number, name in enumerate(classes.names)}
    learned = np.array([label in number_of for label in cells.labels], np.bool_)
    at = np.flatnonzero(cells.held_out & learned)
    if not len(at):
        raise DataError(
            f"no {cells.split} cell has one of the {len(number_of)} classes: hold out cells of other donors"
        )
    truth = np.array([number_of[label] for label in cells.labels[at]])
    other = np.flatnonzero(cells.held_out & ~learned & np.array([label is not None for label in cells.labels]))
    embedded = embed_cells(annotator.model, cells.ranked(ranks).take(np.concatenate([at, other])))
    probabilities = class_probabilities(annotator.model, embedded, annotator.calibration.temperature)
    guesses = probabilities[: len(at)].argmax(1)
    chosen, _ = choose_classes(probabilities, annotator.calibration.threshold)
    own, of_other = chosen[: len(at)], chosen[len(at) :]
    advance()
    labels = cells.labels.copy()
    labels[~learned] = None
    rows = [{"scored": ANNOTATOR, **figures([_scores(truth, guesses)])}]
    rows += _probes(annotator, cells, ranks, ProbeSplit.of(labels, cells.held_out), advance)
    largest = np.full(len(truth), int(np.argmax(classes.n_train)))
    rows.append({"scored": MAJORITY, **figures([_scores(truth, largest)])})
    return {
        "checkpoint": {"path": str(annotator.checkpoint.path.resolve()), "step": annotator.checkpoint.step},
        "label": classes.label,
        "split": cells.split,
        "cells": {
            "train": sum(classes.n_train),
            "probes_train": round(SUBSAMPLE * int((learned & ~cells.held_out).sum())),
            "held_out": len(at),
            "of_other_classes": len(other),
            "without_tokens": cells.n_empty,
        },
        "scores": rows,
        "unknown": {
            "threshold": annotator.calibration.threshold,
            "max_error": annotator.calibration.max_error,
            "labelled": int((own >= 0).sum()),
            "wrong": int(((own >= 0) & (own != truth)).sum()),
            "other_labelled": int((of_other >= 0).sum()),
        },
        "classes": _per_class(classes, truth, guesses),
        "confusion": confusion_matrix(truth, guesses, labels=np.arange(len(classes.names))).tolist(),
    }


def n_scores(config: Config) -> int:
    """The number of calls of `advance`."""
    return 1 + PROBE_SEEDS * (3 if _pretrained(config) else 2)


def _pretrained(config: Config) -> Path | None:
    """The checkpoint that a run began with, if it is still there."""
    path = Path(config.model.init_from) if config.model.init_from else None
    return path if path is not None and path.is_dir() else None


def _probes(
    annotator: Annotator, cells: EvaluationCells, ranks: str, split: ProbeSplit, advance: Callable[[], object]
) -> list[Row]:
    """Rows of linear probes, of the pretrained embedding only if its checkpoint is still there."""
    tokens = cells.ranked(ranks)
    subject = Subject(annotator.model, annotator.config, cells, ranks, 1)
    features: dict[str, F32] = {}
    if (path := _pretrained(annotator.config)) is not None:
        model, _, _ = load_model(path)
        model.classifier = None
    identity = json.loads((annotator.checkpoint.path / "identity.json").read_text())
    # A pretraining that began anew may have other weights there by now.
    if path is not None and hash_weights(model.state_dict()) == identity[INIT]["weights"]:
        features["pretrained"] = embed_cells(model.to(next(annotator.model.parameters()).device), tokens)
    features["pca"] = principal_components(cells.expression, ~cells.held_out)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in PROBES if name in features or name == "random"}
    for seed in range(PROBE_SEEDS):
        features["random"] = embed_cells(subject.random_model(seed), tokens)
        for name, of_name in runs.items():
            found = probe(features[name], split, seed)
            of_name.append({"accuracy": found["linear_accuracy"], "macro_f1": found["linear_macro_f1"]})
            advance()
    return [{"scored": PROBES[name], **figures(of_name)} for name, of_name in runs.items()]


def _scores(truth: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64]) -> dict[str, float]:
    return {"accuracy": 100 * float(accuracy_score(truth, guesses)), "macro_f1": 100 * macro_f1(truth, guesses)}


def _per_class(classes: Classes, truth: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    numbers = np.arange(len(classes.names))
    precision, recall, f1, support = precision_recall_fscore_support(truth, guesses, labels=numbers, zero_division=0.0)
    return [
        {
            "name": name,
            "train": classes.n_train[i],
            "held_out": int(support[i]),
            "precision": 100 * float(precision[i]),
            "recall": 100 * float(recall[i]),
            "f1": 100 * float(f1[i]),
        }
        for i, name in enumerate(classes.names)
    ]

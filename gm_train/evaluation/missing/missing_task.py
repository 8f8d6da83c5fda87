"""The missing-gene task: how well a cell's embedding names the genes that were not shown, compared with controls."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from gm_train.evaluation.figures import (
    FREQUENCY,
    MODEL,
    NEIGHBOURS,
    PCA,
    RANDOM,
    RANKS,
    Row,
    compare,
    figures,
    split_of,
)
from gm_train.evaluation.missing.missing_controls import fitted_guesses
from gm_train.evaluation.missing.missing_genes import SHOWN, MissingScore, divide, model_guess, score_missing
from gm_train.evaluation.task import EvaluationTask, Subject, note_if_tuned
from gm_train.objective.cell_keys import cell_keys


class MissingGenesTask(EvaluationTask):
    """Cross-entropy and hit rate on the genes of held-out cells that were not shown."""

    key = "missing"
    columns = (
        ("cross_entropy", "CE, nats", "Cross-entropy of missing genes (nats)", 2, False),
        ("found", "found %", "Missing genes found (%)", 1, True),
    )
    controls = (PCA, NEIGHBOURS, FREQUENCY, RANDOM)
    chart = ("found", "Missing genes", "found, % (higher is better)", 1)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.n_scores = (1 + len(self.controls)) * subject.mask_seeds
        self._tuned: dict[str, list[dict[str, dict[str, float]]]] = {}
        self._n_scored: dict[str, list[int]] = {}

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model and each control on the same divided cells, for each mask seed."""
        subject, cells, size = self.subject, self.subject.cells, self.subject.vocabulary_size
        scores: dict[str, list[MissingScore]] = {name: [] for name in (MODEL, *self.controls)}
        self._tuned[ranks], self._n_scored[ranks] = [], []
        for seed in range(subject.mask_seeds):
            keys = cell_keys(seed, cells.data_set, cells.row)
            train, held_out = (
                divide(cells.ranked(ranks).take(some), cells.expression[some], keys[some])
                for some in (np.flatnonzero(~cells.held_out), np.flatnonzero(cells.held_out))
            )
            if not train.n_cells or not held_out.n_cells:
                return []  # too few cells have several genes
            guesses, tuned = fitted_guesses(train, size)
            self._tuned[ranks].append(tuned)
            self._n_scored[ranks].append(held_out.n_cells)
            guesses[MODEL] = model_guess(subject.model, subject.precision)
            guesses[RANDOM] = model_guess(subject.random_model(seed), subject.precision)
            for name, made in scores.items():
                made.append(score_missing(guesses[name], held_out))
                advance()
        return [{"ranks": ranks, "scored": name, **figures([asdict(s) for s in runs])} for name, runs in scores.items()]

    def facts(self) -> Row:
        """The share of genes that is shown; and for each seed the cells scored and the settings of the controls."""
        return {"shown_rate": SHOWN, "missing_cells": self._n_scored, "missing_controls": self._tuned}

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        return (
            f"Missing genes of {results['missing_cells'][ranks][0]:,} {split_of(results)} cells, {ranks} ranks "
            f"(mean ± sd, mask seeds: {results['mask_seeds']})"
        )

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence for each kind of ranks: which controls the model beats."""
        rows = results[MissingGenesTask.key]
        return [compare(rows, ranks, MissingGenesTask.controls, MissingGenesTask.columns[0]) for ranks in RANKS]

    @staticmethod
    def notes(results: Row) -> list[str]:
        """What is shown, what the controls learn from, and models that were not trained on missing genes."""
        if not results[MissingGenesTask.key]:
            return ["There are no scores of missing genes: no training cell or no held-out cell has several genes."]
        notes = [
            f"Of a cell divided for the missing genes, each gene is shown with probability {results['shown_rate']:.0%}."
            " Cross-entropy is over all genes that are not shown. PCA and nearest neighbours see the expression of the "
            f"shown genes, of which the model sees the order; they learn from {results['cells']['train']:,} training "
            "cells and are tuned on some of them. Where the store has more, --max-cells gives them more."
        ]
        if results["model"]["language"] != "missing":
            notes.append(
                "The model was not trained to name missing genes from its pooled state: its missing-gene scores mean "
                "little."
            )
        return notes + note_if_tuned(results, "missing")

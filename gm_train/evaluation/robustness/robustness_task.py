"""The robustness task: what is kept of an embedding when the counts of its cells are disturbed."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import scipy.sparse

from gm_train.embedding.embed_cells import F32, embed_cells
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.figures import MODEL, PCA, RANDOM, RANKS, Columns, Row, compare, figures, split_of
from gm_train.evaluation.principal_components import project
from gm_train.evaluation.probes.probes import ProbeSplit
from gm_train.evaluation.robustness.disturbances import DISTURBANCES, disturb
from gm_train.evaluation.robustness.robustness_scores import (
    PROBES,
    Disturbed,
    Representation,
    score_robustness,
)
from gm_train.evaluation.task import EvaluationTask, Subject
from gm_train.model.genemamba import GeneMamba

#: Seeds of disturbances, of the probes' subsamples, and of random weights.
SEEDS = 3

_MOVED: Columns = (
    *((f"moved_{d.key}", d.heading, f"Movement, {d.heading}", 2, False) for d in DISTURBANCES),
    ("moved", "mean", "Movement of embeddings (1 is the nearest other cell)", 2, False),
)


def _accuracies(probe: str, name: str) -> Columns:
    return (
        (f"{probe}_useful", "useful", f"Accuracy of {name} on undisturbed cells (%)", 1, True),
        *((f"{probe}_{d.key}", d.heading, f"Accuracy of {name}, {d.heading} (%)", 1, True) for d in DISTURBANCES),
        (f"{probe}_robust", "robust", f"Accuracy of {name} that disturbed cells keep (%)", 1, True),
    )


class RobustnessTask(EvaluationTask):
    """Accuracy of probes on disturbed held-out cells, and how far their embeddings move."""

    key = "robustness"
    columns = (*(column for probe, name in PROBES.items() for column in _accuracies(probe, name)), *_MOVED)
    controls = (PCA, RANDOM)
    chart = (
        "moved",
        "Movement of embeddings under disturbed counts",
        "in distances to the next cell (lower is better)",
        2,
    )

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        cells = subject.cells
        split = ProbeSplit.of(cells.labels, cells.held_out) if cells.labels is not None else None
        self._split = split if split is not None and split.usable else None
        self._numbers = np.flatnonzero(cells.held_out)
        self._whole = all((part.counts.data == np.rint(part.counts.data)).all() for part in cells.counts.values())
        if len(self._numbers) > 1 and self._whole:
            self.n_scores = (1 + len(self.controls)) * SEEDS
        self._emptied: dict[str, list[int]] = {d.key: [0] * SEEDS for d in DISTURBANCES}
        self._of_pca: list[dict[str, float]] = []

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Fit probes once on undisturbed training cells; score them, and movement, under each disturbance."""
        subject, counts = self.subject, self.subject.cells.counts
        scores: dict[str, list[dict[str, float]]] = {MODEL: [], PCA: [], RANDOM: []}
        for seed in range(SEEDS):
            disturbed: Disturbed = {}
            for d in DISTURBANCES:
                parts = disturb(counts, d, seed).values()
                tokens = Ragged.concatenate([part.ranked(ranks) for part in parts])
                disturbed[d.key] = tokens, scipy.sparse.vstack([part.expression() for part in parts], format="csr")
                self._emptied[d.key][seed] = int((tokens.lengths == 0).sum())
            scores[MODEL].append(self._score(self._of_model(subject.model, subject.embedded(ranks)), disturbed, seed))
            advance()
            if len(self._of_pca) <= seed:  # expression has no ranks: the components are scored once
                self._of_pca.append(self._score(self._pca, disturbed, seed))
            scores[PCA].append(self._of_pca[seed])
            advance()
            random = self._of_model(subject.random_model(seed), subject.random_embedded(ranks, seed))
            scores[RANDOM].append(self._score(random, disturbed, seed))
            advance()
        return [{"ranks": ranks, "scored": name, **figures(runs)} for name, runs in scores.items()]

    @cached_property
    def _pca(self) -> Representation:
        return Representation(self.subject.pca(), lambda _, x: project(self.subject.components, x))

    def _score(self, embedding: Representation, disturbed: Disturbed, seed: int) -> dict[str, float]:
        return score_robustness(embedding, self._numbers, self._split, disturbed, seed)

    def _of_model(self, model: GeneMamba, undisturbed: F32) -> Representation:
        precision = self.subject.precision
        return Representation(undisturbed, lambda tokens, _: embed_cells(model, tokens, precision=precision))

    def facts(self) -> Row:
        """Seeds, numbers of cells, and why nothing is scored."""
        reason = None if self._whole else "counts of held-out cells are not whole numbers"
        if len(self._numbers) < 2:
            reason = "there are fewer than two held-out cells"
        return {
            "robustness_facts": {
                "seeds": SEEDS,
                "cells": len(self._numbers),
                "labelled": 0 if self._split is None else len(self._split.held_out),
                "emptied": self._emptied,
                "reason": reason,
                "made_elsewhere": sorted(self.subject.embeddings),
            }
        }

    @classmethod
    def chart_of(cls, rows: Sequence[Row]) -> tuple[str, str, str, int]:
        """What nearest neighbours keep; movement without labels."""
        if "knn_robust" not in rows[0]:
            return cls.chart
        return (
            "knn_robust",
            "Accuracy of kNN that disturbed cells keep",
            "% of undisturbed cells' (higher is better)",
            0,
        )

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The end of the titles of the tables of one kind of ranks."""
        facts = results["robustness_facts"]
        return f"{facts['cells']:,} {split_of(results)} cells, {ranks} ranks (mean ± sd, seeds: {facts['seeds']})"

    @classmethod
    def tables(cls, results: Row, ranks: str) -> list[tuple[str, Columns]]:
        """With labels a table for each probe, and one of movement."""
        probes = PROBES if "knn_useful" in results[cls.key][0] else {}
        parts = [(f"accuracy of {name}, %", _accuracies(probe, name)) for probe, name in probes.items()]
        parts.append(("movement, in distances to the nearest other cell", _MOVED))
        return [(f"Robustness, {what}: {cls.title(results, ranks)}", columns) for what, columns in parts]

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence on what nearest neighbours keep, and one on movement, for each kind of ranks."""
        rows = results["robustness"]
        columns = [_accuracies("knn", PROBES["knn"])[-1], _MOVED[-1]]
        return [
            compare(rows, ranks, RobustnessTask.controls, column)
            for column in columns
            for ranks in RANKS
            if column[0] in rows[0]
        ]

    @staticmethod
    def notes(results: Row) -> list[str]:
        """How counts are disturbed, and what is not scored."""
        facts = results["robustness_facts"]
        if facts["reason"]:
            return [f"Robustness is not scored, because {facts['reason']}."]
        notes = [
            "Robustness: counts of held-out cells are disturbed and ranked again. Each molecule is kept with a "
            "probability of 50, 20 or 5 %; half of the genes are dropped; or, as with another chemistry, each gene has "
            "a log-normal probability of its own. Probes are fitted once, on undisturbed training cells. An embedding "
            "that is not useful has little to lose: read robust beside useful. For movement, the mean vector of the "
            "undisturbed training cells is taken off all vectors."
        ]
        if not facts["labelled"]:
            notes.append("Without usable labels (--label), robustness is movement alone.")
        for d in DISTURBANCES:
            if any(emptied := facts["emptied"][d.key]):
                notes.append(
                    f"Cells without any gene after a disturbance ({d.heading}: {max(emptied):,}) count as wrong and as "
                    "at distance 1 from themselves."
                )
        if facts["made_elsewhere"]:
            notes.append(
                "Vectors that were made elsewhere cannot be made again from disturbed counts, so their robustness is "
                f"not scored: {', '.join(facts['made_elsewhere'])}."
            )
        return notes

"""The integration task: whether an embedding mixes batches and keeps cell types, beside controls."""

from collections.abc import Callable

import numpy as np

from data_shards.errors import DataError
from gm_train.embedding.embed_cells import F32
from gm_train.evaluation.figures import (
    BY_BATCH,
    BY_TYPE,
    MODEL,
    PCA,
    RANDOM,
    RANKS,
    Columns,
    Row,
    compare,
    figures,
    gap,
    row_of,
    split_of,
)
from gm_train.evaluation.integration.scgraph import (
    MIN_BATCH,
    MIN_OTHERS,
    MIN_TYPE,
    consensus_distances,
    scgraph,
    scored_types,
)
from gm_train.evaluation.integration.scib_scores import has_scib_metrics, scib_scores
from gm_train.evaluation.integration.shuffled_vectors import shuffle_within
from gm_train.evaluation.integration.typed_cells import SEEDS, SUBSAMPLE, TypedCells
from gm_train.evaluation.task import EvaluationTask, Subject

#: What Avg_bio (the first three) and Avg_batch are means of.
PARTS: Columns = (
    ("nmi", "NMI", "NMI of clusters and types", 3, True),
    ("ari", "ARI", "ARI of clusters and types", 3, True),
    ("asw_type", "ASW type", "silhouette width of types", 3, True),
    ("asw_batch", "ASW batch", "silhouette width of batches", 3, True),
    ("graph_connectivity", "connectivity", "graph connectivity of types", 3, True),
)


class IntegrationTask(EvaluationTask):
    """Avg_bio and Avg_batch of scIB, and scGraph, of frozen embeddings."""

    key = "integration"
    columns = (
        ("avg_bio", "Avg_bio", "Avg_bio of batch integration", 3, True),
        ("avg_batch", "Avg_batch", "Avg_batch of batch integration", 3, True),
        ("scgraph", "scGraph", "scGraph of batch integration", 3, True),
    )
    controls = (PCA, BY_TYPE, BY_BATCH, RANDOM)
    takes_embeddings = True
    chart = ("avg_bio", "Integration: cell types kept", "Avg_bio (higher is better)", 2)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._left_out: str | None = None
        self._same: dict[tuple[str, int], dict[str, float]] = {}
        obstacles = []
        if subject.config.task.label:
            obstacles.append(f"the weights were fine-tuned on labels ({subject.config.task.label!r}), which it rewards")
        if not has_scib_metrics():
            obstacles.append("scib-metrics is not installed: pip install 'gm-train[eval]'")
        try:
            self._cells = TypedCells.of(subject.cells)
        except DataError as error:
            obstacles.append(str(error))
        if obstacles:
            self._left_out = "; ".join(obstacles)
            return
        self.n_scores = (1 + len(self.controls) + len(subject.embeddings)) * SEEDS
        scored, typed = self._cells.types[self._cells.numbers], self._cells.typed
        names, counts = np.unique(scored.astype(str), return_counts=True)
        self._names = names[counts >= MIN_TYPE]
        self._consensus = consensus_distances(
            subject.cells.expression[typed], self._cells.types[typed], self._cells.batches[typed], self._names
        )

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model's embeddings, given vectors and each control, for each seed."""
        subject = self.subject
        scores: dict[str, list[dict[str, float]]] = {name: [] for name in (MODEL, *subject.embeddings, *self.controls)}
        for seed, draw in enumerate(self._cells.draws):
            embedded = subject.embedded(ranks)[draw]
            features = {
                MODEL: embedded,
                **{name: vectors[draw] for name, vectors in subject.embeddings.items()},
                PCA: subject.pca()[draw],
                BY_TYPE: shuffle_within(embedded, self._cells.types[draw], seed),
                BY_BATCH: shuffle_within(embedded, self._cells.batches[draw], seed),
                RANDOM: subject.random_embedded(ranks, seed)[draw],
            }
            for name, vectors in features.items():
                if name in (PCA, *subject.embeddings):  # the same on both kinds of ranks
                    if (name, seed) not in self._same:
                        self._same[name, seed] = self._score(vectors, seed)
                    scores[name].append(self._same[name, seed])
                else:
                    scores[name].append(self._score(vectors, seed))
                advance()
        self.features = subject.drawn()
        return [{"ranks": ranks, "scored": name, **figures(runs)} for name, runs in scores.items()]

    def _score(self, features: F32, seed: int) -> dict[str, float]:
        """Score the vectors of the cells that a seed draws."""
        draw = self._cells.draws[seed]
        types = self._cells.types[draw]
        scores = scib_scores(features, types, self._cells.batches[draw])
        if self._consensus is not None:
            scores["scgraph"] = scgraph(features, types, self._names, self._consensus)
        return scores

    def facts(self) -> Row:
        """Which cells were scored, by which types and batches; or why none were."""
        if self._left_out is not None:
            return {"integration_of": {"left_out": self._left_out}}
        cells, found = self.subject.cells, self._cells
        return {
            "integration_of": {
                "label": cells.label,
                "batch": cells.batch,
                "cells": len(found.numbers),
                "only_held_out": found.only_held_out,
                "why_all": found.why_all,
                "without": len(cells.row) - len(found.typed),
                "types": len(set(found.types[found.numbers])),
                "batches": len(set(found.batches[found.numbers])),
                "types_of_scgraph": 0 if self._consensus is None else int(scored_types(self._consensus).sum()),
                "seeds": SEEDS,
            }
        }

    @staticmethod
    def question(results: Row) -> object:
        """The types and batches, and which cells have both."""
        return results["integration_of"]

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        of = results["integration_of"]
        which = f"{split_of(results)} cells" if of["only_held_out"] else f"cells, {split_of(results)} and training"
        return (
            f"Integration of {of['batches']} {of['batch']!r} over {of['types']} {of['label']!r}, {of['cells']:,} "
            f"{which}, {ranks} ranks (mean ± sd, draws of cells: {of['seeds']})"
        )

    @classmethod
    def tables(cls, results: Row, ranks: str) -> list[tuple[str, Columns]]:
        """The scores, and the parts of those of scIB."""
        columns = [column for column in cls.columns if column[0] in results[cls.key][0]]
        return [(cls.title(results, ranks), columns), (f"Parts of Avg_bio and Avg_batch, {ranks} ranks", PARTS)]

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence on each score, for each kind of ranks; and a warning where scIB and scGraph disagree."""
        rows, sentences = results[IntegrationTask.key], []
        columns = [column for column in IntegrationTask.columns if column[0] in rows[0]]
        for column in columns:
            # Vectors that are shuffled among the cells of a type have the model's own Avg_bio and scGraph.
            shown_elsewhere = BY_BATCH if column[0] == "avg_batch" else BY_TYPE
            others = [
                name for name in dict.fromkeys(row["scored"] for row in rows) if name not in (MODEL, shown_elsewhere)
            ]
            sentences += [compare(rows, ranks, others, column) for ranks in RANKS]
        if len(columns) == len(IntegrationTask.columns):
            for ranks in RANKS:
                model, pca = (row_of(rows, ranks, name) for name in (MODEL, PCA))
                bio, batch, distances = (gap(model[key], pca[key], more) for key, *_, more in columns)
                if (bio, batch, distances) == (1, 1, -1):
                    sentences.append(
                        f"On {ranks} ranks the model beats PCA in both scores of scIB and loses to it in scGraph: it "
                        "may have moved types apart that are alike. Do not call this a better integration."
                    )
        return sentences

    @staticmethod
    def notes(results: Row) -> list[str]:
        """How integration was scored, or why it was not."""
        of = results["integration_of"]
        if "left_out" in of:
            return [f"Batch integration was not scored: {of['left_out']}."]
        notes = [
            f"Integration: Avg_bio is the mean of NMI, ARI and ASW of {of['label']!r}, Avg_batch that of ASW of "
            f"{of['batch']!r} and graph connectivity. PCA is no integration. Each seed scores "
            f"{SUBSAMPLE:.0%} of the cells of each type. All scores can be gamed: docs/evaluation.md says how."
        ]
        if not of["only_held_out"]:
            notes.append(
                f"Integration was scored on all cells: {of['why_all']}. The model has seen the training cells, not "
                "their types and batches. Vectors that were made elsewhere with types or batches of training cells "
                "have an advantage."
            )
        if not of["types_of_scgraph"]:
            notes.append(
                f"There is no scGraph: it needs a batch of at least {MIN_BATCH} cells with {MIN_OTHERS + 1} types that "
                f"have at least {MIN_TYPE} scored cells."
            )
        if of["without"]:
            notes.append(
                f"{of['without']:,} cells have no {of['label']!r} or no {of['batch']!r} and are left out of the scores "
                "of integration."
            )
        return notes

"""The pair task: are the vectors of genes of one pathway closer than those of random genes that are otherwise alike?"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.evaluation.figures import COEXPRESSION, LEVEL, MODEL, RANDOM, RANKS, Columns, Row, compare, figures
from gm_train.evaluation.pairs.gene_vectors import auroc, contextual_vectors, correlations, cosines, static_vectors
from gm_train.evaluation.pairs.matched_pairs import (
    PairSample,
    draw_matched,
    match_classes,
    related_pairs,
    sharing,
)
from gm_train.evaluation.task import EvaluationTask, Subject
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.pathway import PathwayIndex, index_gene_sets, pathways_of

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
#: Takes a kind of sets and pairs of tokens, int64 (n, 2); returns float64 (n,), higher for closer genes.
Scorer = Callable[[str, I64], F64]

#: Seeds of the random pairs and of random weights.
SEEDS = 3
#: Training cells over which a gene's states are averaged, at most, and in how many of them a gene must be.
CONTEXT_CELLS, MIN_CELLS = 500, 5
#: Fewer pairs are not scored.
MIN_PAIRS = 20

#: Kinds of sets: the end of a column's key, and words for it.
TRAINED, HELD_OUT = "trained", "held_out"
_WORDS = {TRAINED: "sets of the training", HELD_OUT: "sets that the training did not have"}


def _columns_of(kind: str) -> Columns:
    return (
        (f"static_{kind}", "static", f"AUROC of pairs by input embeddings, {_WORDS[kind]} (%)", 1, True),
        (f"contextual_{kind}", "contextual", f"AUROC of pairs by final states, {_WORDS[kind]} (%)", 1, True),
    )


class PairsTask(EvaluationTask):
    """AUROC of pairs that share a gene set against matched random pairs."""

    key = "pairs"
    columns = (*_columns_of(TRAINED), *_columns_of(HELD_OUT))
    controls = (COEXPRESSION, LEVEL, RANDOM)
    chart = ("contextual_trained", "Pairs of genes", "AUROC by final states, % (50 is chance)", 0)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        cells = subject.cells
        train = np.flatnonzero(~cells.held_out)
        some = np.random.default_rng(0).permutation(train)[:CONTEXT_CELLS]
        self._context = np.sort(some)
        self._expression = cells.expression[train]
        self._frequency = np.zeros(subject.vocabulary_size)
        self._frequency[FIRST_GENE:] = self._expression.getnnz(axis=0) / len(train)
        self._trained, self._path = self._training_sets()
        self._genes: dict[str, I64] = {}
        self._samples: dict[str, list[PairSample]] = {}
        self._n_related: dict[str, int] = {}
        if self._trained is not None:
            self._draw(TRAINED, self._trained)
        if subject.gene_sets is not None:
            if self._path is not None:
                raise DataError(
                    f"--gene-sets {subject.gene_sets}: pairs that the model was trained on cannot be left out, because "
                    f"{self._path} (objective.pathways) is missing: put it back"
                )
            objective = subject.config.objective
            self._draw(HELD_OUT, index_gene_sets(subject.gene_sets, objective, cells.tokenizer, "--gene-sets"))
        if self._samples:
            self.n_scores = (1 + len(self.controls)) * SEEDS

    def _training_sets(self) -> tuple[PathwayIndex | None, Path | None]:
        """The sets of L_pathway; or the path of their file, if it is missing."""
        objective = self.subject.config.objective
        path = Path(objective.pathways)
        if objective.pathways and objective.gamma != 0 and not path.exists():
            return None, path
        return pathways_of(objective, self.subject.cells.tokenizer), None

    def _draw(self, kind: str, index: PathwayIndex) -> None:
        """Draw the pairs of one kind of sets, for each seed; if there are enough."""
        cells, size = self.subject.cells, self.subject.vocabulary_size
        is_there = index.annotated.copy()
        for ranks in RANKS:
            tokens = cells.ranked(ranks).take(self._context).tokens.astype(np.int64)
            is_there &= np.bincount(tokens, minlength=size) >= MIN_CELLS
        genes = np.flatnonzero(is_there)
        trained = self._trained.annotated if self._trained is not None else np.zeros(size, np.bool_)
        indices = [index] if self._trained is None or kind == TRAINED else [index, self._trained]
        related = related_pairs(index, genes) if len(genes) else np.zeros((0, 2), np.int64)
        for other in indices[1:]:
            related = related[~sharing(other, related)]
        self._n_related[kind] = len(related)
        if len(related) < MIN_PAIRS:
            return
        classes = match_classes(index, genes, self._frequency[genes], trained[genes])
        samples = [
            draw_matched(related, genes, classes, indices, np.random.default_rng([seed, len(indices)]))
            for seed in range(SEEDS)
        ]
        if min(len(sample.related) for sample in samples) >= MIN_PAIRS:
            self._genes[kind], self._samples[kind] = genes, samples

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model and each control on the same pairs, for each seed."""
        subject = self.subject
        of_model = self._by_vectors(subject.model, ranks)
        level = np.zeros(subject.vocabulary_size)
        level[FIRST_GENE:] = rankdata(np.asarray(self._expression.mean(0))[0])

        def by_correlation(kind: str, pairs: I64) -> F64:
            return correlations(self._expression, pairs - FIRST_GENE)

        def by_level(kind: str, pairs: I64) -> F64:
            return -np.abs(level[pairs[:, 0]] - level[pairs[:, 1]])

        runs: dict[str, list[dict[str, float]]] = {name: [] for name in (MODEL, *self.controls)}
        for seed in range(SEEDS):
            of_random = self._by_vectors(subject.random_model(seed), ranks)
            for name, scorers in (
                (MODEL, of_model),
                (COEXPRESSION, (by_correlation, by_correlation)),
                (LEVEL, (by_level, by_level)),
                (RANDOM, of_random),
            ):
                runs[name].append(self._aurocs(seed, *scorers))
                advance()
        return [{"ranks": ranks, "scored": name, **figures(made)} for name, made in runs.items()]

    def _by_vectors(self, model: GeneMamba, ranks: str) -> tuple[Scorer, Scorer]:
        """Cosines of static and of contextual vectors."""
        cells = self.subject.cells.ranked(ranks).take(self._context)
        static, contextual = static_vectors(model), contextual_vectors(model, cells, self.subject.precision)
        return (
            lambda kind, pairs: cosines(static, self._genes[kind], pairs),
            lambda kind, pairs: cosines(contextual, self._genes[kind], pairs),
        )

    def _aurocs(self, seed: int, static: Scorer, contextual: Scorer) -> dict[str, float]:
        found = {}
        for kind, samples in self._samples.items():
            pairs = np.concatenate([samples[seed].related, samples[seed].random])
            for name, scorer in (("static", static), ("contextual", contextual)):
                found[f"{name}_{kind}"] = auroc(scorer(kind, pairs))
        return found

    def facts(self) -> Row:
        """Seeds, cells, and for each kind of sets the numbers of genes and pairs; why nothing is scored."""
        reason = None
        if self._path is not None:
            # Without the folder: a model card shows notes, and must not show paths of a machine.
            reason = f"the gene sets of the training, {self._path.name}, are missing where the run had them"
        elif not self._n_related:
            reason = "no gene sets of the training are known, and none were given (--gene-sets)"
        elif not self._samples:
            reason = f"fewer than {MIN_PAIRS} pairs of genes share a set and have random pairs like them"
        return {
            "pairs_facts": {
                "seeds": SEEDS,
                "cells": len(self._context),
                "train": self._expression.shape[0],
                "reason": reason,
                "related": self._n_related,
                "sets": {
                    kind: {
                        "genes": len(self._genes[kind]),
                        "scored": [len(sample.related) for sample in samples],
                        "unmatched": [sample.unmatched for sample in samples],
                    }
                    for kind, samples in self._samples.items()
                },
            }
        }

    @staticmethod
    def question(results: Row) -> object:
        """The pairs: their numbers tell gene sets apart."""
        return results["pairs_facts"]["sets"]

    @classmethod
    def chart_of(cls, rows: Sequence[Row]) -> tuple[str, str, str, int]:
        """Contextual vectors, on sets that the training did not have if there are some."""
        kind = next(kind for kind in (HELD_OUT, TRAINED) if f"static_{kind}" in rows[0])
        _, title, unit, decimals = cls.chart
        return f"contextual_{kind}", f"{title}, {_WORDS[kind]}", unit, decimals

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The end of the titles of the tables of one kind of ranks."""
        return f"{ranks} ranks (AUROC in %, mean ± sd, seeds: {results['pairs_facts']['seeds']})"

    @classmethod
    def tables(cls, results: Row, ranks: str) -> list[tuple[str, Columns]]:
        """A table for each kind of sets that was scored."""
        row, end = results[cls.key][0], cls.title(results, ranks)
        return [
            (f"Pairs of genes in {words}, against matched random pairs, {end}", _columns_of(kind))
            for kind, words in _WORDS.items()
            if f"static_{kind}" in row
        ]

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence for each column and each kind of ranks."""
        rows = results["pairs"]
        return [
            compare(rows, ranks, PairsTask.controls, column)
            for column in PairsTask.columns
            for ranks in RANKS
            if column[0] in rows[0]
        ]

    @staticmethod
    def notes(results: Row) -> list[str]:
        """How pairs are matched, and what is not scored."""
        facts = results["pairs_facts"]
        if facts["reason"]:
            return [f"Pairs of genes are not scored, because {facts['reason']}."]
        notes = [
            "Each pair of genes that shares a set is matched with a random pair that shares none; its genes are in as "
            "many sets (1, 2, 3 to 4, 5 to 8, ...) and in about as many cells. Static: cosine of the input embeddings. "
            f"Contextual: of the final states, averaged over {facts['cells']:,} training cells. Co-expression is the "
            f"correlation over {facts['train']:,} training cells; expression level is the difference of ranks by mean "
            "expression. These two have no vectors, so both columns are the same."
        ]
        for kind, n_related in facts["related"].items():
            if kind not in facts["sets"]:
                notes.append(f"Of the {_WORDS[kind]}, too few pairs ({n_related:,}) are left to be scored.")
            else:
                n = facts["sets"][kind]
                notes.append(
                    f"Pairs of the {_WORDS[kind]}: {n_related:,} of {n['genes']:,} genes, of which {n['scored'][0]:,} "
                    f"are scored and {n['unmatched'][0]:,} have no random pair like them."
                )
        if HELD_OUT in facts["sets"] and TRAINED in facts["related"]:
            notes.append("Pairs that also share a set of the training are not among those it did not have.")
        return notes

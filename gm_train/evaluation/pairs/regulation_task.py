"""The regulation task: does the model know which genes regulate which, and in which direction?"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from data_shards.files.atomic import hash_path
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.evaluation.figures import (
    COEXPRESSION,
    EMBEDDINGS,
    LEVEL,
    MODEL,
    RANDOM,
    RANKS,
    REGRESSION,
    STATES,
    Row,
    compare,
)
from gm_train.evaluation.pairs.directed_pairs import (
    RESAMPLES,
    DirectedScore,
    better_signs,
    choose_pairs,
    draw_unrelated,
    regression_effects,
    score_directed,
    summarise,
)
from gm_train.evaluation.pairs.gene_vectors import contextual_vectors, correlations, cosines, static_vectors
from gm_train.evaluation.pairs.influence import HalvedCells, halve, influences
from gm_train.evaluation.pairs.regulation_file import RegulatedPairs, read_regulation
from gm_train.evaluation.task import EvaluationTask, Subject, note_if_tuned
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.cell_keys import cell_keys

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
#: Takes pairs of tokens, int64 (n, 2); returns float64 (n,), how much the first one seems to do to the second one.
Scorer = Callable[[I64], F64]

#: Draws of unrelated pairs and of random weights.
SEEDS = 3
#: A pair must be asked for in so many cells, in each direction. Fewer pairs or regulators are not scored.
MIN_ASKED, MIN_PAIRS, MIN_REGULATORS = 2, 20, 10
#: Tokens that a model reads for one kind of ranks, about (twice as many if genes are masked), and the cells that this
#: gives, at least and at most. Fewer cells would ask for too few pairs, so cells of more than 500 genes cost more.
_TOKENS, _FEWEST, _MOST = 300_000, 12, 64
#: Genes of the pairs in one half of a cell, about.
_ASKED_GENES = 50
#: Training cells over which a gene's states are averaged, at most.
_CONTEXT_CELLS = 500


class RegulationTask(EvaluationTask):
    """Direction and detection of pairs of a regulator and a target, by the model's influence of one on the other."""

    key = "regulation"
    columns = (
        ("direction", "direction %", "Regulated pairs whose direction is found (%)", 1, True),
        ("detection", "AUROC %", "AUROC of regulated pairs against unrelated ones (%)", 1, True),
    )
    controls = (STATES, EMBEDDINGS, COEXPRESSION, REGRESSION, LEVEL, RANDOM)
    chart = ("direction", "Direction of regulation", "regulator found, % (50 is chance)", 0)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._intervals: dict[str, dict[str, dict[str, list[float]]]] = {}
        self._facts: Row = {"reason": None}
        if subject.regulation is None:
            self._facts["reason"] = "no table of regulators and targets was given (--regulation)"
            return
        known = read_regulation(subject.regulation, subject.cells.tokenizer)
        if (language := subject.config.objective.language) not in ("masked", "missing"):
            self._facts["reason"] = (
                f"{language} predicts a gene from those before it: no gene can be taken out of what it sees of both"
            )
            return
        self._expression = subject.cells.expression[np.flatnonzero(~subject.cells.held_out)]
        self._numbers = self._choose_cells()
        self._draw(known)
        self._facts |= {
            "seeds": SEEDS,
            "resamples": RESAMPLES,
            "cells": len(self._numbers),
            "train": self._expression.shape[0],
            "listed": known.n_listed,
            "unknown": known.n_unknown,
            "undirected": known.n_undirected,
            "file": hash_path(subject.regulation),
        }
        if not self._facts["reason"]:
            self.n_scores = 1 + SEEDS

    def _choose_cells(self) -> I64:
        """Numbers of the held-out cells that are asked: as many as can be asked in bounded time, int64 (n,)."""
        cells = self.subject.cells
        held_out = np.flatnonzero(cells.held_out)
        # A half of a cell is read again without each of its genes that is asked for, and so is the other half.
        n = int(np.clip(_TOKENS / (cells.plain.lengths[held_out].mean() * _ASKED_GENES), _FEWEST, _MOST))
        return np.sort(np.random.default_rng(0).permutation(held_out)[:n])

    def _halved(self, ranks: str) -> HalvedCells:
        cells, numbers = self.subject.cells, self._numbers
        keys = cell_keys(0, cells.data_set[numbers], cells.row[numbers])
        return halve(cells.ranked(ranks).take(numbers), keys)

    def _draw(self, known: RegulatedPairs) -> None:
        """Choose the pairs, and unrelated ones for each seed; or say why there are too few."""
        size = self.subject.vocabulary_size
        halved = [self._halved(ranks) for ranks in RANKS]

        def can_ask(pairs: I64) -> npt.NDArray[np.bool_]:
            return np.asarray(np.min([each.n_asked(pairs, size) for each in halved], axis=0) >= MIN_ASKED)

        frequency = np.zeros(size)
        frequency[FIRST_GENE:] = self._expression.getnnz(axis=0) / self._expression.shape[0]
        askable = known.tokens[can_ask(known.tokens)]
        pairs = choose_pairs(askable, np.random.default_rng(0))
        unrelated = [
            draw_unrelated(pairs, known.known, frequency, can_ask, np.random.default_rng([seed, 1]))
            for seed in range(SEEDS)
        ]
        found = np.all([drawn[:, 1] >= 0 for drawn in unrelated], axis=0)
        self._pairs, self._unrelated = pairs[found], [drawn[found] for drawn in unrelated]
        self._genes = np.unique(self._pairs)
        n_regulators = len(np.unique(self._pairs[:, 0]))
        self._facts |= {
            "askable": len(askable),
            "pairs": len(self._pairs),
            "regulators": n_regulators,
            "unmatched": int((~found).sum()),
        }
        if len(self._pairs) < MIN_PAIRS or n_regulators < MIN_REGULATORS:
            self._facts["reason"] = (
                f"pairs that can be asked for in {MIN_ASKED} cells or more and have unrelated pairs like them are too "
                f"few: {len(self._pairs):,}, regulators among them: {n_regulators}; {MIN_PAIRS} pairs and "
                f"{MIN_REGULATORS} regulators are needed"
            )

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model and each control on the same pairs, for each seed."""
        subject, genes = self.subject, self._genes
        train = np.flatnonzero(~subject.cells.held_out)
        context = np.sort(np.random.default_rng(0).permutation(train)[:_CONTEXT_CELLS])
        static = static_vectors(subject.model)
        states = contextual_vectors(subject.model, subject.cells.ranked(ranks).take(context), subject.precision)
        level = np.zeros(subject.vocabulary_size)
        level[FIRST_GENE:] = rankdata(np.asarray(self._expression.mean(0))[0])
        scorers: dict[str, Scorer] = {
            MODEL: self._by_influence(subject.model, ranks),
            STATES: lambda pairs: np.abs(cosines(states, genes, pairs)),
            EMBEDDINGS: lambda pairs: np.abs(cosines(static, genes, pairs)),
            COEXPRESSION: lambda pairs: np.abs(correlations(self._expression, pairs - FIRST_GENE)),
            REGRESSION: self._of_matrix(regression_effects(self._expression, genes - FIRST_GENE)),
            LEVEL: lambda pairs: level[pairs[:, 0]] - level[pairs[:, 1]],
        }
        advance()
        runs: dict[str, list[DirectedScore]] = {name: [] for name in (MODEL, *self.controls)}
        for seed, unrelated in enumerate(self._unrelated):
            scorers[RANDOM] = self._by_influence(subject.random_model(seed), ranks)
            for name, made in runs.items():
                forward, backward, other = map(scorers[name], (self._pairs, self._pairs[:, ::-1], unrelated))
                made.append(score_directed(forward, backward, other, self._pairs))
            advance()
        runs[LEVEL] = better_signs(runs[LEVEL])
        summaries = {name: summarise(made) for name, made in runs.items()}
        self._intervals[ranks] = {name: intervals for name, (_, intervals) in summaries.items()}
        return [{"ranks": ranks, "scored": name, **figures} for name, (figures, _) in summaries.items()]

    def _by_influence(self, model: GeneMamba, ranks: str) -> Scorer:
        language, precision = self.subject.config.objective.language, self.subject.precision
        return self._of_matrix(influences(model, self._halved(ranks), self._genes, language, precision))

    def _of_matrix(self, effects: F64) -> Scorer:
        """Sizes of effects, float64 (n_genes, n_genes) of the first gene on the second, whatever their signs."""

        def score(pairs: I64) -> F64:
            return np.asarray(np.abs(effects[*np.searchsorted(self._genes, pairs).T]))

        return score

    def facts(self) -> Row:
        """Pairs, cells and 95 % intervals; why nothing is scored."""
        return {"regulation_facts": {**self._facts, "intervals": self._intervals}}

    @staticmethod
    def question(results: Row) -> object:
        """The table of regulation."""
        return results["regulation_facts"].get("file")

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        facts = results["regulation_facts"]
        return (
            f"{facts['pairs']:,} pairs of {facts['regulators']} regulators and their targets, {ranks} ranks "
            f"(mean ± sd over regulators and targets drawn anew, seeds: {facts['seeds']})"
        )

    @classmethod
    def verdicts(cls, results: Row) -> list[str]:
        """A sentence for each column and each kind of ranks, with the model's interval."""
        sentences = []
        for column in cls.columns:
            for ranks in RANKS:
                low, high = results["regulation_facts"]["intervals"][ranks][MODEL][column[0]]
                sentence = compare(results[cls.key], ranks, cls.controls, column)
                sentences.append(f"{sentence} Its 95 % interval is {low:.1f} to {high:.1f}; chance is 50.")
        return sentences

    @staticmethod
    def notes(results: Row) -> list[str]:
        """How pairs are asked for and matched, and what is not scored."""
        facts = results["regulation_facts"]
        if facts["reason"]:
            return [f"Regulators and targets are not scored, because {facts['reason']}."]
        return [
            f"Regulators and targets: of {facts['listed']:,} pairs, {facts['unknown']:,} have a gene that the "
            f"vocabulary lacks, {facts['undirected']:,} have no direction, {facts['askable']:,} can be asked for in "
            f"{facts['cells']} held-out cells, and {facts['pairs']:,} are scored. Direction: the regulator changes the "
            "target's log probability by more than the target changes the regulator's. Cosines and co-expression are "
            "the same in both directions, so they are at 50. Expression level takes the gene that is expressed more, "
            "or the one that is expressed less, for the regulator, whichever is right more often. Ridge regression of "
            f"expression learns from {facts['train']:,} training cells.",
            *note_if_tuned(results, "regulated"),
        ]

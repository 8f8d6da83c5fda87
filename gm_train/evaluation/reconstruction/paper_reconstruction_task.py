"""Reconstruction as published, beside machines that only copy. It is run on request; it tells nothing about cells."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.figures import MODEL, RANDOM, RANKS, Row, figures, row_of, split_of
from gm_train.evaluation.reconstruction.paper_reconstruction import (
    GROUP,
    I64,
    PaperScore,
    copied_input,
    copy_machine,
    refuse_few,
    repeated_by,
    score_groups,
)
from gm_train.evaluation.task import EvaluationTask, Subject

COPY, INPUT = "copy machine", "its input"


class PaperReconstructionTask(EvaluationTask):
    """L-Dist and BLEU of whole cells that the model sees and repeats, in joined groups of cells."""

    key = "paper_reconstruction"
    columns = (
        ("distance", "L-Dist", "L-Dist of repeated cells, which proves nothing,", 1, False),
        ("bleu", "BLEU", "BLEU of repeated cells, which proves nothing,", 3, True),
        ("exact", "exact %", "Positions repeated exactly (%)", 1, True),
    )
    controls = (COPY, INPUT, RANDOM)
    chart = ("bleu", "Repeated cells (leaky, as published)", "BLEU; copying gets it too", 3)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        refuse_few(int(subject.cells.held_out.sum()))
        self.n_scores = 3 + subject.mask_seeds

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model and each machine on the same groups of cells; random weights anew for each mask seed."""
        subject = self.subject
        cells = subject.cells.ranked(ranks).take(np.flatnonzero(subject.cells.held_out))
        scores: dict[str, list[PaperScore]] = {}
        machines: dict[str, Callable[[Ragged], I64]] = {
            MODEL: lambda shown: repeated_by(subject.model, shown, subject.precision),
            COPY: copy_machine,
            INPUT: copied_input,
        }
        for name, machine in machines.items():
            scores[name] = score_groups(cells, machine(cells))
            advance()
        scores[RANDOM] = []
        for seed in range(subject.mask_seeds):
            scores[RANDOM] += score_groups(cells, repeated_by(subject.random_model(seed), cells, subject.precision))
            advance()
        return [{"ranks": ranks, "scored": name, **figures([asdict(s) for s in runs])} for name, runs in scores.items()]

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        n_groups = results["cells"]["held_out"] // GROUP
        return (
            f"Whole cells repeated, as published and leaky: {n_groups:,} groups of {GROUP} {split_of(results)} cells, "
            f"{ranks} ranks (mean ± sd over groups)"
        )

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """Say for each kind of ranks that this score proves nothing."""
        rows = results[PaperReconstructionTask.key]
        sentences = []
        for ranks in RANKS:
            model, copy = (row_of(rows, ranks, name) for name in (MODEL, COPY))
            sentences.append(
                f"Repeated cells on {ranks} ranks prove nothing about what the model knows: it sees the order that it "
                f"repeats (L-Dist {model['distance']['mean']:.1f}, BLEU {model['bleu']['mean']:.3f}). A machine that "
                f"copies the next token and knows no gene gets L-Dist {copy['distance']['mean']:.1f} and BLEU "
                f"{copy['bleu']['mean']:.3f}; one that copies its input gets L-Dist 0 and BLEU 1."
            )
        return sentences

"""The reconstruction task: how well the model puts hidden genes back in their order, compared with counted controls."""

from collections.abc import Callable
from dataclasses import asdict

from gm_train.evaluation.figures import MODEL, RANKS, Row, compare, figures, split_of
from gm_train.evaluation.masked.masked_trials import CONTROLS, MASK_RATE, MaskedTrials
from gm_train.evaluation.reconstruction.order_score import OrderScore, score_orders
from gm_train.evaluation.reconstruction.reconstructed_order import reconstruct
from gm_train.evaluation.task import EvaluationTask, Subject, note_if_tuned


class ReconstructionTask(EvaluationTask):
    """Order of the genes named for hidden positions of held-out cells, against their true order."""

    key = "reconstruction"
    columns = (
        ("named", "named %", "Hidden positions with the right gene (%)", 1, True),
        ("spearman", "Spearman", "Rank correlation of hidden genes (Spearman)", 3, True),
        ("levenshtein", "Levenshtein", "Levenshtein distance of hidden genes (normalised)", 3, False),
        ("bleu", "BLEU", "BLEU of hidden genes", 3, True),
    )
    controls = CONTROLS
    chart = ("spearman", "Order of hidden genes", "Spearman (higher is better)", 2)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.n_scores = (1 + len(self.controls)) * subject.mask_seeds

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model and each control on the same hidden genes, for each mask seed."""
        scores: dict[str, list[OrderScore]] = {name: [] for name in (MODEL, *self.controls)}
        for masked, predictors in MaskedTrials(self.subject, ranks):
            for name, runs in scores.items():
                score = score_orders(reconstruct(predictors[name], masked))
                if score is None:
                    return []  # no cell has several hidden genes
                runs.append(score)
                advance()
        return [{"ranks": ranks, "scored": name, **figures([asdict(s) for s in runs])} for name, runs in scores.items()]

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        return (
            f"Order of the hidden genes of {results['cells']['held_out']:,} {split_of(results)} cells, {ranks} ranks "
            f"(mean ± sd, mask seeds: {results['mask_seeds']})"
        )

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence for each kind of ranks: which controls the model beats."""
        rows = results[ReconstructionTask.key]
        return [compare(rows, ranks, ReconstructionTask.controls, ReconstructionTask.columns[1]) for ranks in RANKS]

    @staticmethod
    def notes(results: Row) -> list[str]:
        """How the order was reconstructed, or why there is none."""
        if not results[ReconstructionTask.key]:
            return ["There is no order of hidden genes to score: no held-out cell has several hidden genes."]
        notes = [
            f"Order of hidden genes: {MASK_RATE:.0%} of a cell's genes are hidden, as for the scores of hidden genes. "
            "Each hidden position is named, the likeliest pairs of position and gene first, each gene once and none "
            "that the cell shows (probabilities are those among the other genes). "
            "Spearman compares the places of the hidden genes with the places where they are "
            "named; a gene that is not named counts as in the middle."
        ]
        if (language := results["model"]["language"]) != "masked":
            notes.append(
                f"The model was trained with objective.language={language}, not on masked genes: the order that it "
                "names says little about what it knows."
            )
        return notes + note_if_tuned(results, "the order of hidden")

"""The masked-gene task: how well the model guesses hidden genes, compared with counted controls."""

from collections.abc import Callable
from dataclasses import asdict

from gm_train.evaluation.figures import FREQUENCY, MODEL, ORDER, RANKS, Row, compare, figures, gap, row_of, split_of
from gm_train.evaluation.masked.masked_genes import Score, score_masked
from gm_train.evaluation.masked.masked_trials import CONTROLS, MASK_RATE, MaskedTrials
from gm_train.evaluation.task import EvaluationTask, Subject, note_if_tuned

#: If the order control and frequency differ by less (nats), the neighbours of a hidden gene reveal almost nothing.
NEGLIGIBLE = 0.05


class MaskedGenesTask(EvaluationTask):
    """Cross-entropy and hit rates on hidden genes of held-out cells."""

    key = "masked"
    columns = (
        ("cross_entropy", "CE, nats", "Cross-entropy of hidden genes (nats)", 2, False),
        ("top1", "top-1 %", "Hidden gene named first (%)", 1, True),
        ("top10", "top-10 %", "Hidden gene among the first ten (%)", 1, True),
    )
    controls = CONTROLS
    chart = ("cross_entropy", "Hidden genes", "cross-entropy, nats (lower is better)", 2)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.n_scores = (1 + len(self.controls)) * subject.mask_seeds
        self._order_control: dict[str, dict[str, float]] = {}

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model and each control on the same hidden genes, for each mask seed."""
        trials = MaskedTrials(self.subject, ranks)
        self._order_control[ranks] = {"strength": trials.order.strength, "smoothing": trials.order.smoothing}
        scores: dict[str, list[Score]] = {name: [] for name in (MODEL, *self.controls)}
        for masked, predictors in trials:
            for name, runs in scores.items():
                runs.append(score_masked(predictors[name], masked))
                advance()
        return [{"ranks": ranks, "scored": name, **figures([asdict(s) for s in runs])} for name, runs in scores.items()]

    def facts(self) -> Row:
        """The mask rate, and the tuned settings of the order control."""
        return {"mask_rate": MASK_RATE, "order_control": self._order_control}

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        return (
            f"Hidden genes of {results['cells']['held_out']:,} {split_of(results)} cells, {ranks} ranks "
            f"(mean ± sd, mask seeds: {results['mask_seeds']})"
        )

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence or more for each kind of ranks: which controls the model beats, and what follows."""
        rows, trained_on = results["masked"], results["model"]["trained_on"]
        sentences = []
        for ranks in RANKS:
            sentence = compare(rows, ranks, MaskedGenesTask.controls, MaskedGenesTask.columns[0])
            order, model, frequency = (row_of(rows, ranks, name)["cross_entropy"] for name in (ORDER, MODEL, FREQUENCY))
            if abs(order["mean"] - frequency["mean"]) < NEGLIGIBLE:
                sentence += (
                    " Neighbouring genes reveal almost nothing here: a model that beats frequency knows about cells"
                )
                beyond = gap(model, frequency, more_is_better=False) > 0
                sentence += "." if beyond else "; this one does not."
            elif gap(model, order, more_is_better=False) > 0:
                sentence += " It knows more about cells than neighbouring genes reveal."
            else:
                sentence += " It does not beat the order control: neighbouring genes alone could explain its score."
            if ranks != trained_on:
                sentence += f" It was trained on {trained_on} ranks, not on {ranks} ones."
            sentences.append(sentence)
        return sentences

    @staticmethod
    def notes(results: Row) -> list[str]:
        """What is counted, how the order control was tuned, and models that were not trained on masked genes."""
        tuned = ", ".join(
            f"strength {found['strength']:g} on {ranks} ranks" for ranks, found in results["order_control"].items()
        )
        notes = [
            f"{results['mask_rate']:.0%} of a cell's genes are hidden behind the mask token. Cross-entropy is over all "
            f"{results['cells']['genes']:,} genes for every row. Count controls use {results['cells']['train']:,} "
            "training cells with the same kind of ranks, and never guess a visible gene; the model may.",
            f"The order control was tuned on training cells: {tuned} (0 means plain frequency).",
        ]
        if what := {"next_token": "next tokens", "missing": "missing genes"}.get(results["model"]["language"]):
            notes.append(f"The model was trained on {what}, never on masked ones: its masked-gene scores mean little.")
        return notes + note_if_tuned(results, "masked")

"""The probe task: how well simple classifiers predict a label from frozen cell embeddings."""

from collections.abc import Callable

from gm_train.evaluation.figures import MODEL, PCA, RANDOM, RANKS, Row, compare, figures
from gm_train.evaluation.probes.probes import ProbeSplit, probe
from gm_train.evaluation.task import EvaluationTask, Subject

#: Seeds of the probes' subsamples; each seed also draws the random weights of its control.
PROBE_SEEDS = 3


class ProbeTask(EvaluationTask):
    """Accuracy and macro-F1 of a linear probe and of nearest neighbours, on labelled held-out cells."""

    key = "probes"
    columns = (
        ("linear_accuracy", "linear acc. %", "Accuracy of a linear probe (%)", 1, True),
        ("linear_macro_f1", "linear F1 %", "Macro-F1 of a linear probe (%)", 1, True),
        ("knn_accuracy", "kNN acc. %", "Accuracy of nearest neighbours (%)", 1, True),
        ("knn_macro_f1", "kNN F1 %", "Macro-F1 of nearest neighbours (%)", 1, True),
    )
    controls = (PCA, RANDOM)
    takes_embeddings = True
    panel = ("linear_accuracy", "Linear probe of {label[key]}", "accuracy, % (higher is better)", 0)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        cells = subject.cells
        self._split = ProbeSplit.of(cells.labels, cells.held_out) if cells.labels is not None else None
        if self._split is not None and self._split.usable:
            self.n_scores = 1 + (1 + len(self.controls) + len(subject.embeddings)) * PROBE_SEEDS

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Probe the model's embeddings and those of each control, for each probe seed."""
        subject = self.subject
        assert self._split is not None
        embedded, pca = subject.embedded(ranks), subject.pca()
        advance()
        others = {**subject.embeddings, PCA: pca}
        scores: dict[str, list[dict[str, float]]] = {name: [] for name in (MODEL, *others, RANDOM)}
        for seed in range(PROBE_SEEDS):
            random = subject.random_embedded(ranks, seed)
            for name, features in {MODEL: embedded, **others, RANDOM: random}.items():
                scores[name].append(probe(features, self._split, seed))
                advance()
        if ranks == subject.trained_on:
            self.features = {f"GeneMamba, {ranks} ranks": embedded, f"PCA, {pca.shape[1]} components": pca}
            self.features |= subject.embeddings
        return [{"ranks": ranks, "scored": name, **figures(runs)} for name, runs in scores.items()]

    def facts(self) -> Row:
        """The number of probe seeds, and the label with its counts of cells (None without a label)."""
        split = self._split
        label = split and {
            "key": self.subject.cells.label,
            "train": len(split.train),
            "held_out": len(split.held_out),
            "unseen": split.unseen,
            "unlabelled": split.unlabelled,
        }
        return {"probe_seeds": PROBE_SEEDS, "label": label}

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        label = results["label"]
        return (
            f"{label['key']!r} of {label['held_out']:,} held-out cells from frozen embeddings, {ranks} ranks "
            f"(mean ± sd, probe seeds: {results['probe_seeds']})"
        )

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence on the accuracy of each probe, for each kind of ranks."""
        return [
            compare(results["probes"], ranks, ProbeTask.controls, column)
            for column in (ProbeTask.columns[0], ProbeTask.columns[2])
            for ranks in RANKS
        ]

    @staticmethod
    def notes(results: Row) -> list[str]:
        """Why there are no probes, and the cells that are left out of them."""
        label = results["label"]
        if label is None:
            return ["There are no probes, because no label was given (--label)."]
        notes = []
        if not results[ProbeTask.key]:
            notes.append(
                f"There are no probes, because too few training cells have {label['key']!r}, all have the same value, "
                "or no held-out cell has one of their values."
            )
        if label["unlabelled"]:
            notes.append(f"{label['unlabelled']:,} cells have no {label['key']!r} and are left out of the probes.")
        if label["unseen"]:
            kinds = ", ".join(f"{name} ({count})" for name, count in label["unseen"].items())
            notes.append(f"Held-out cells with labels that no training cell has are left out of the probes: {kinds}.")
        return notes

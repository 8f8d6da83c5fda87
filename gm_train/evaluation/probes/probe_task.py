"""The probe task: how well simple classifiers predict a label from frozen cell embeddings."""

from collections import Counter
from collections.abc import Callable

from gm_train.evaluation.figures import (
    MODEL,
    PCA,
    RANDOM,
    RANKS,
    VARIABLE,
    Column,
    Columns,
    Row,
    compare,
    figures,
    split_of,
)
from gm_train.evaluation.probes.probes import ProbeSplit, probe
from gm_train.evaluation.probes.type_scores import RARE, SUPPORT_BINS, bin_name, bin_of, rare_types
from gm_train.evaluation.probes.variable_genes import variable_genes
from gm_train.evaluation.task import EvaluationTask, Subject

#: Seeds of the probes' subsamples; each seed also draws the random weights of its control.
PROBE_SEEDS = 3
#: Rare types that a note names.
_MOST_NAMES = 8


_RARE: Column = ("rare_auroc", "AUROC", f"AUROC of types with fewer than {RARE} training cells", 3, True)


class ProbeTask(EvaluationTask):
    """How well a linear probe and nearest neighbours name the label of held-out cells, rare ones apart."""

    key = "probes"
    columns = (
        ("linear_accuracy", "linear acc. %", "Accuracy of a linear probe (%)", 1, True),
        ("linear_macro_f1", "linear F1 %", "Macro-F1 of a linear probe (%)", 1, True),
        ("knn_accuracy", "kNN acc. %", "Accuracy of nearest neighbours (%)", 1, True),
        ("knn_macro_f1", "kNN F1 %", "Macro-F1 of nearest neighbours (%)", 1, True),
        ("linear_ece", "linear ECE %", "Expected calibration error of a linear probe (%)", 1, False),
    )
    controls = (PCA, VARIABLE, RANDOM)
    takes_embeddings = True
    chart = ("linear_accuracy", "Linear probe of {label[key]}", "accuracy, % (higher is better)", 0)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        cells = subject.cells
        self._split = ProbeSplit.of(cells.labels, cells.held_out) if cells.labels is not None else None
        self._fixed: dict[str, list[dict[str, float]]] = {}
        if self._split is not None and self._split.usable:
            self.n_scores = 1 + (1 + len(subject.embeddings) + len(self.controls)) * PROBE_SEEDS

    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Probe the model's embeddings and those of each control, for each probe seed."""
        subject = self.subject
        assert self._split is not None
        embedded = subject.embedded(ranks)
        advance()
        scores: dict[str, list[dict[str, float]]] = {MODEL: [], **self._probe_fixed(advance), RANDOM: []}
        for seed in range(PROBE_SEEDS):
            random = subject.random_embedded(ranks, seed)
            for name, features in ((MODEL, embedded), (RANDOM, random)):
                scores[name].append(probe(features, self._split, seed))
                advance()
        if ranks == subject.trained_on:
            self.features = subject.drawn()
        return [{"ranks": ranks, "scored": name, **figures(runs)} for name, runs in scores.items()]

    def _probe_fixed(self, advance: Callable[[], object]) -> dict[str, list[dict[str, float]]]:
        """Probe what does not depend on ranks, once for both kinds: other embeddings, PCA and variable genes."""
        subject, split = self.subject, self._split
        assert split is not None
        if not self._fixed:
            genes = variable_genes(subject.cells.expression, ~subject.cells.held_out)
            for name, features in {**subject.embeddings, PCA: subject.pca(), VARIABLE: genes}.items():
                self._fixed[name] = []
                for seed in range(PROBE_SEEDS):
                    self._fixed[name].append(probe(features, split, seed))
                    advance()
        else:
            for _ in range(len(self._fixed) * PROBE_SEEDS):
                advance()
        return self._fixed

    def facts(self) -> Row:
        """The number of probe seeds, and the label with its types and counts of cells (None without a label)."""
        return {"probe_seeds": PROBE_SEEDS, "label": self._split and self._label(self._split)}

    def _label(self, split: ProbeSplit) -> Row:
        support, truth = split.support, split.labels[split.held_out].astype(str)
        held_out = Counter(truth.tolist())
        return {
            "key": self.subject.cells.label,
            "train": len(split.train),
            "held_out": len(split.held_out),
            "unseen": split.unseen,
            "unlabelled": split.unlabelled,
            "obstacle": split.obstacle,
            "types": {name: {"train": support[name], "held_out": held_out[name]} for name in sorted(support)},
            "rare": rare_types(truth, support),
        }

    @staticmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""
        label = results["label"]
        return (
            f"{label['key']!r} of {label['held_out']:,} {split_of(results)} cells from frozen embeddings, {ranks} "
            f"ranks (mean ± sd, probe seeds: {results['probe_seeds']})"
        )

    @classmethod
    def tables(cls, results: Row, ranks: str) -> list[tuple[str, Columns]]:
        """The scores over all types, and recall by the number of training cells of a type, for each probe."""
        label = results["label"]
        scored = [counts["train"] for counts in label["types"].values() if counts["held_out"]]
        n_types = {start: sum(bin_of(n) == start for n in scored) for start in SUPPORT_BINS}
        tables: list[tuple[str, Columns]] = [(cls.title(results, ranks), cls.columns)]
        for probe_key, name in (("linear", "a linear probe"), ("knn", "nearest neighbours")):
            columns: list[Column] = [
                (f"{probe_key}_recall_{start}", f"{bin_name(start)} ({n})", f"Recall by {name} (%)", 1, True)
                for start, n in n_types.items()
                if n
            ]
            title = f"Recall % by {name} for {label['key']!r} with so many training cells (types), {ranks} ranks"
            if probe_key == "linear" and label["rare"]:
                columns.append(_RARE)
                title += f"; AUROC of those with fewer than {RARE}"
            tables.append((title, columns))
        return tables

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """A sentence on the accuracy of each probe and on rare types, for each kind of ranks."""
        rows = results[ProbeTask.key]
        others = [name for name in dict.fromkeys(row["scored"] for row in rows) if name != MODEL]
        columns = [ProbeTask.columns[0], ProbeTask.columns[2], *([_RARE] if results["label"]["rare"] else [])]
        return [compare(rows, ranks, others, column) for column in columns for ranks in RANKS]

    @staticmethod
    def notes(results: Row) -> list[str]:
        """Why there are no probes, how types are compared, and the cells that are left out."""
        label = results["label"]
        if label is None:
            return ["There are no probes, because no label was given (--label)."]
        notes = []
        if label["obstacle"]:
            notes.append(f"There are no probes of {label['key']!r}, because {label['obstacle']}.")
        elif label["rare"]:
            notes.append(
                f"Rare types have fewer than {RARE} training cells: {_listed(label['rare'])}. Their AUROC is that of "
                "the linear probe's probability, each type against all other cells (0.5 is chance)."
            )
        else:
            notes.append(
                f"There is no AUROC of rare types: of types with fewer than {RARE} training cells no cell is held out, "
                "or no cell of another type is."
            )
        if label["unlabelled"]:
            notes.append(f"{label['unlabelled']:,} cells have no {label['key']!r} and are left out of the probes.")
        if label["unseen"]:
            kinds = ", ".join(f"{name} ({count})" for name, count in label["unseen"].items())
            notes.append(f"Held-out cells with labels that no training cell has are left out of the probes: {kinds}.")
        return notes


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more

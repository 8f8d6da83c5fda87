"""The interface of an evaluation task: one kind of score for the model and its controls, on both kinds of ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from sklearn.decomposition import PCA

from gm_train.config.schema import Config
from gm_train.embedding.embed_cells import F32, embed_cells
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.figures import Columns, Row
from gm_train.evaluation.principal_components import fit_components, project
from gm_train.model.genemamba import GeneMamba


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, and the cells it is evaluated on.

    Attributes:
        model: in evaluation mode.
        config: the configuration of its run.
        cells: training and held-out cells.
        trained_on: "plain" or "dithered", the ranks that the model was trained on.
        mask_seeds: how often genes are hidden anew.
        precision: "fp32", or "bf16" for autocast.
        embeddings: name to vectors that were made elsewhere, float32 (n_cells, n_features).
        gene_sets: a GMT file of sets that the model was not trained with; None without.
        pathways_hash: SHA-256 (hex) of the file of gene sets that the model was trained with; empty without.
        regulation: a table of regulators and their targets; None without.
    """

    model: GeneMamba
    config: Config
    cells: EvaluationCells
    trained_on: str
    mask_seeds: int
    precision: str = "fp32"
    embeddings: dict[str, F32] = field(default_factory=dict)
    gene_sets: Path | None = None
    pathways_hash: str = ""
    regulation: Path | None = None
    _kept: dict[str, F32] = field(default_factory=dict, repr=False)

    def embedded(self, ranks: str) -> F32:
        """Embed all cells with one kind of ranks, once: float32 (n_cells, d_model)."""
        if ranks not in self._kept:
            self._kept[ranks] = embed_cells(self.model, self.cells.ranked(ranks), precision=self.precision)
        return self._kept[ranks]

    @cached_property
    def components(self) -> PCA:
        """Principal components of the expression, fitted to the training cells once."""
        return fit_components(self.cells.expression[~self.cells.held_out])

    def pca(self) -> F32:
        """Principal components of the expression, fitted to the training cells, of all cells; computed once."""
        if "pca" not in self._kept:
            self._kept["pca"] = project(self.components, self.cells.expression)
        return self._kept["pca"]

    def random_embedded(self, ranks: str, seed: int) -> F32:
        """Embed all cells with random weights of a seed, once: float32 (n_cells, d_model)."""
        key = f"random {seed} {ranks}"
        if key not in self._kept:
            model = self.random_model(seed)
            self._kept[key] = embed_cells(model, self.cells.ranked(ranks), precision=self.precision)
        return self._kept[key]

    def drawn(self) -> dict[str, F32]:
        """Title to embeddings for maps: the model's on the ranks of its training, PCA's, and those made elsewhere."""
        pca = self.pca()
        return {
            f"GeneMamba, {self.trained_on} ranks": self.embedded(self.trained_on),
            f"PCA, {pca.shape[1]} components": pca,
            **self.embeddings,
        }

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return self.model.embedding.num_embeddings

    def random_model(self, seed: int) -> GeneMamba:
        """Make a model of the same shape with random weights, on the same device, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GeneMamba(self.config.model, self.vocabulary_size)
        return model.eval().to(next(self.model.parameters()).device)


class EvaluationTask(ABC):
    """One kind of score; `tasks.py` lists the tasks.

    Args:
        subject: the model and the cells.

    Attributes:
        key: the name of the task in `--tasks`, and of its rows in `eval.json`.
        columns: the columns of its tables.
        controls: rows that must be there besides the model's own.
        takes_embeddings: whether it also scores vectors that were made elsewhere (`Subject.embeddings`).
        chart: what is drawn: column, title (a format string over the results), label of the axis, decimals.
        n_scores: number of calls of `advance` on one kind of ranks; 0 if the task cannot be done for this subject
            (`notes` says why).
        features: title to embeddings that are drawn, float32 (n_cells, n_features); may be empty.
    """

    key: ClassVar[str]
    columns: ClassVar[Columns]
    controls: ClassVar[tuple[str, ...]]
    takes_embeddings: ClassVar[bool] = False
    chart: ClassVar[tuple[str, str, str, int]]

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.n_scores = 0
        self.features: dict[str, F32] = {}

    @abstractmethod
    def rows(self, ranks: str, advance: Callable[[], object]) -> list[Row]:
        """Score the model and each control.

        Args:
            ranks: plain or dithered.
            advance: moves the progress bar by one; call it after each score.

        Returns:
            A row for the model and for each control: `ranks`, `scored`, and a figure for each column.
        """

    def facts(self) -> Row:
        """Further entries of `eval.json`; called once all rows are made."""
        return {}

    @staticmethod
    def question(results: Row) -> object:
        """What the scores depend on besides the cells, their label and the seeds; only equal ones can be compared."""
        return None

    @classmethod
    def chart_of(cls, rows: Sequence[Row]) -> tuple[str, str, str, int]:
        """What is drawn, as in `chart`.

        Args:
            rows: of the task; they have the column.
        """
        return cls.chart

    @staticmethod
    @abstractmethod
    def title(results: Row, ranks: str) -> str:
        """The title of the table of one kind of ranks."""

    @classmethod
    def tables(cls, results: Row, ranks: str) -> list[tuple[str, Columns]]:
        """The tables of one kind of ranks, as title and columns; more than one if the columns need it."""
        return [(cls.title(results, ranks), cls.columns)]

    @staticmethod
    def verdicts(results: Row) -> list[str]:
        """Sentences on what the rows show; called only if there are rows."""
        return []

    @staticmethod
    def notes(results: Row) -> list[str]:
        """Sentences on how the numbers were made, or why there are none; called once facts and rows are there."""
        return []


def note_if_tuned(results: Row, what: str) -> list[str]:
    """The note of a task that asks the output layer of a model that was fine-tuned without it; otherwise none.

    Args:
        results: of an evaluation.
        what: the genes that the task scores, such as "masked".
    """
    label = results["model"]["label"]
    if not label:
        return []
    return [
        f"The model was fine-tuned for {label!r}; its output layer was not trained with it, so its scores of {what} "
        "genes mean little."
    ]

"""Evaluate a model: run the tasks with every control, on plain and dithered ranks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from data_shards.tokens.vocabulary import FIRST_GENE
from data_shards.workers.progress import Progress
from gm_train.config.schema import Config
from gm_train.embedding.embed import default_precision
from gm_train.embedding.embed_cells import F32
from gm_train.evaluation import score_table
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.checks.checks import run_checks
from gm_train.evaluation.embedding_maps import Colouring, draw_maps, has_umap
from gm_train.evaluation.figures import RANKS, Row, split_of
from gm_train.evaluation.score_pictures import draw_scores
from gm_train.evaluation.task import EvaluationTask, Subject
from gm_train.evaluation.tasks import choose_tasks
from gm_train.model.genemamba import GeneMamba


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        results: everything in the tables, ready for JSON.
        embeddings: title to features of all cells, float32 (n_cells, n_features), for maps; empty without probes and
            scores of integration.
        cells: the cells that were scored.
    """

    results: Row
    embeddings: dict[str, F32]
    cells: EvaluationCells

    def write(self, directory: Path) -> list[Path]:
        """Write `eval.json`, `eval.md` and the pictures in place of those of an earlier evaluation.

        Returns:
            Their paths.
        """
        directory.mkdir(parents=True, exist_ok=True)
        written = [directory / "eval.json", directory / "eval.md", directory / "eval-scores.png"]
        # `eval.json` goes first: it must not stand beside pictures of another checkpoint. Scores are written before
        # pictures, so that none is lost where drawing fails.
        for old in (written[0], *directory.glob("eval-*.png")):
            old.unlink(missing_ok=True)
        replace_file(written[1], score_table.render_markdown(self.results))
        replace_file(written[0], json.dumps(self.results, indent=1) + "\n")
        draw_scores(self.results, written[2])
        colourings = []
        if self.cells.labels is not None:
            colourings.append(Colouring(str(self.cells.label), self.cells.labels, numbered=True))
        if self.cells.batches is not None:
            colourings.append(Colouring(str(self.cells.batch), self.cells.batches, numbered=False))
        if self.embeddings and colourings:
            written += draw_maps(self.embeddings, colourings, directory, "eval-embedding")
        return written


def evaluate(
    model: GeneMamba,
    config: Config,
    cells: EvaluationCells,
    trained_on: str,
    mask_seeds: int,
    checkpoint: Row,
    embeddings: dict[str, F32] | None = None,
    chosen: Sequence[type[EvaluationTask]] = (),
    gene_sets: Path | None = None,
    other_store: bool = False,
    pathways_hash: str = "",
    regulation: Path | None = None,
) -> Evaluation:
    """Score a model and its controls.

    Args:
        model: in evaluation mode, on the device to use. On a GPU it is evaluated in the precision of its run.
        config: the configuration of its run.
        cells: training and held-out cells, from `read_cells`.
        trained_on: "plain" or "dithered", the ranks that the model was trained on.
        mask_seeds: how often genes are hidden anew, each time with another model of random weights.
        checkpoint: the checkpoint that the model is from: its `step`, `path` and `hash`.
        embeddings: name to vectors of the same cells that were made elsewhere, float32 (n_cells, n_features).
        chosen: the tasks to run; empty for all.
        gene_sets: a GMT file of sets that the model was not trained with.
        other_store: whether the cells are of a store that the model was not trained on.
        pathways_hash: SHA-256 (hex) of the file of gene sets that the model was trained with; empty without.
        regulation: a table of regulators and their targets.

    Raises:
        DataError: none of the tasks can be done for these cells, no gene is hidden, or gene sets or the table of
            regulation cannot be used.
    """
    precision = default_precision(config, next(model.parameters()).device)
    subject = Subject(
        model, config, cells, trained_on, mask_seeds, precision, embeddings or {}, gene_sets, pathways_hash, regulation
    )
    tasks = [task(subject) for task in chosen or choose_tasks(())]
    rows: dict[str, list[Row]] = {task.key: [] for task in tasks}
    n_scores = len(RANKS) * sum(task.n_scores for task in tasks)
    with Progress(total=n_scores, desc="evaluating", unit=" scores") as bar:
        for ranks in RANKS:
            for task in tasks:
                if task.n_scores:
                    rows[task.key] += task.rows(ranks, bar.update)
    results = _facts(subject, checkpoint, tasks, other_store)
    for task in tasks:
        results |= task.facts()
    results |= rows
    results["tasks"]["scored"] = [key for key, found in rows.items() if found]
    notes = [note for task in tasks for note in task.notes(results)]
    if not results["tasks"]["scored"]:
        raise DataError(f"--tasks {','.join(rows)}: nothing can be scored. {' '.join(notes)}")
    features = {title: f for task in tasks for title, f in task.features.items()}
    if features and not has_umap():
        notes.append("The maps of embeddings are t-SNE: for UMAPs, pip install 'gm-train[eval]'.")
    results["notes"] = notes + _notes(results)
    results["checks"] = run_checks(subject, results)
    return Evaluation(results, features, cells)


def _facts(subject: Subject, checkpoint: Row, tasks: Sequence[EvaluationTask], other_store: bool) -> Row:
    """The entries of `eval.json` that do not depend on scores: the model, its cells and the tasks."""
    config, cells = subject.config, subject.cells
    return {
        "tasks": {"asked": [task.key for task in tasks]},
        "checkpoint": checkpoint,
        "model": {
            "arch": config.model.arch,
            "d_model": config.model.d_model,
            "n_layers": config.model.n_layers,
            "parameters": sum(p.numel() for p in subject.model.parameters()),
            "language": config.objective.language,
            "label": config.task.label,
            "trained_on": subject.trained_on,
            "precision": subject.precision,
        },
        "mask_seeds": subject.mask_seeds,
        "cells": {
            "train": int((~cells.held_out).sum()),
            "held_out": int(cells.held_out.sum()),
            "split": cells.split,
            "genes": subject.vocabulary_size - FIRST_GENE,
            "without_tokens": cells.n_empty,
            "data_sets_left_out": list(cells.missing),
            "data_sets_not_scored": list(cells.not_scored),
            "label": cells.label,
            "hash": cells.hash,
            "other_store": other_store,
        },
    }


def _notes(results: Row) -> list[str]:
    """What holds for all tasks: which were asked for, what the split is worth, and cells that are left out."""
    notes = []
    if split_of(results) == "validation":
        notes.append(
            "The held-out cells are validation cells: settings and checkpoints may have been chosen on them, and then "
            "their scores are too good. Test cells (`gm-train data shards --test`) are kept for scores."
        )
    asked = results["tasks"]["asked"]
    if {task.key for task in choose_tasks(())} - set(asked):
        notes.append(f"Only these tasks were asked for (--tasks): {', '.join(asked)}.")
    if results["cells"]["without_tokens"]:
        notes.append(f"{results['cells']['without_tokens']:,} cells have no gene of the vocabulary and are left out.")
    if left_out := results["cells"]["data_sets_left_out"]:
        notes.append(f"Data sets of the store whose count files were not given are left out: {', '.join(left_out)}.")
    if not_scored := results["cells"]["data_sets_not_scored"]:
        split, other = ("test", "validation") if split_of(results) == "test" else ("validation", "test")
        notes.append(
            f"Data sets without {split} cells are not in these scores: {', '.join(not_scored)}. "
            f"`--split {other}` scores their {other} cells."
        )
    if results["cells"]["other_store"]:
        notes.append(
            "The cells are of a store that this model was not trained on: it may have been trained on cells that are "
            "held out there."
        )
    return notes

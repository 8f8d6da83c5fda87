"""Evaluate a model: hidden genes, missing genes and probes, with every control, on plain and dithered ranks."""

import json
from dataclasses import dataclass
from pathlib import Path

from data_shards.files.atomic import replace_file
from data_shards.tokens.vocabulary import FIRST_GENE
from data_shards.workers.progress import Progress
from gm_train.config.schema import Config
from gm_train.embedding.embed import default_precision
from gm_train.embedding.embed_cells import F32
from gm_train.evaluation import score_table
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.figures import RANKS, Row
from gm_train.evaluation.score_pictures import draw_embeddings, draw_scores
from gm_train.evaluation.task import Subject
from gm_train.evaluation.tasks import TASKS
from gm_train.model.genemamba import GeneMamba


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        results: everything in the tables, ready for JSON.
        embeddings: title to features of all cells, float32 (n_cells, n_features), of the model and of PCA; empty
            without labels.
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
        # `eval.json` goes first and comes last: it must not stand beside pictures of another checkpoint.
        for old in (written[0], *directory.glob("eval-*.png")):
            old.unlink(missing_ok=True)
        replace_file(written[1], score_table.render_markdown(self.results))
        draw_scores(self.results, written[2])
        if self.embeddings and self.cells.labels is not None:
            written.append(directory / "eval-embedding.png")
            draw_embeddings(self.embeddings, self.cells.labels, self.results["label"]["key"], written[-1])
        replace_file(written[0], json.dumps(self.results, indent=1) + "\n")
        return written


def evaluate(
    model: GeneMamba,
    config: Config,
    cells: EvaluationCells,
    trained_on: str,
    mask_seeds: int,
    checkpoint: Row,
    embeddings: dict[str, F32] | None = None,
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

    Raises:
        DataError: no gene is hidden.
    """
    precision = default_precision(config, next(model.parameters()).device)
    subject = Subject(model, config, cells, trained_on, mask_seeds, precision, embeddings or {})
    tasks = [task(subject) for task in TASKS]
    rows: dict[str, list[Row]] = {task.key: [] for task in tasks}
    n_scores = len(RANKS) * sum(task.n_scores for task in tasks)
    with Progress(total=n_scores, desc="evaluating", unit=" scores") as bar:
        for ranks in RANKS:
            for task in tasks:
                if task.n_scores:
                    rows[task.key] += task.rows(ranks, bar.update)
    results: Row = {
        "checkpoint": checkpoint,
        "model": {
            "arch": config.model.arch,
            "d_model": config.model.d_model,
            "n_layers": config.model.n_layers,
            "parameters": sum(p.numel() for p in model.parameters()),
            "language": config.objective.language,
            "label": config.task.label,
            "trained_on": trained_on,
            "precision": precision,
        },
        "cells": {
            "train": int((~cells.held_out).sum()),
            "held_out": int(cells.held_out.sum()),
            "genes": subject.vocabulary_size - FIRST_GENE,
            "without_tokens": cells.n_empty,
            "data_sets_left_out": list(cells.missing),
        },
    }
    for task in tasks:
        results |= task.facts()
    results |= rows
    results["notes"] = _notes(results)
    return Evaluation(results, {title: f for task in tasks for title, f in task.features.items()}, cells)


def _notes(results: Row) -> list[str]:
    """List what a reader must know about how the numbers were made."""
    label = results["label"]
    notes = [
        f"{results['mask_rate']:.0%} of a cell's genes are hidden behind the mask token. Cross-entropy is over all "
        f"{results['cells']['genes']:,} genes for every row. Count controls use {results['cells']['train']:,} "
        "training cells with the same kind of ranks, and never guess a visible gene; the model may.",
        "The order control was tuned on training cells: "
        + ", ".join(f"strength {t['strength']:g} on {ranks} ranks" for ranks, t in results["order_control"].items())
        + " (0 means plain frequency).",
    ]
    notes.append(
        f"Of a cell divided for the missing genes, each gene is shown with probability {results['shown_rate']:.0%}. "
        "Cross-entropy is over all genes that are not shown. PCA and nearest neighbours see the expression of the "
        f"shown genes, of which the model sees the order; they learn from {results['cells']['train']:,} training cells "
        "and are tuned on some of them. Where the store has more, --max-cells gives them more."
        if results["missing"]
        else "There are no scores of missing genes: no training cell or no held-out cell has several genes."
    )
    language = results["model"]["language"]
    if what := {"next_token": "next tokens", "missing": "missing genes"}.get(language):
        notes.append(f"The model was trained on {what}, never on masked ones: its masked-gene scores mean little.")
    if language != "missing":
        notes.append(
            "The model was not trained to name missing genes from its pooled state: its missing-gene scores mean "
            "little."
        )
    if results["model"]["label"]:
        notes.append(
            f"The model was fine-tuned for {results['model']['label']!r}; its output layer was not trained with it, so "
            "its scores of masked and missing genes mean little."
        )
    if results["cells"]["without_tokens"]:
        notes.append(f"{results['cells']['without_tokens']:,} cells have no gene of the vocabulary and are left out.")
    if left_out := results["cells"]["data_sets_left_out"]:
        notes.append(f"Data sets of the store whose count files were not given are left out: {', '.join(left_out)}.")
    if label is None:
        notes.append("There are no probes, because no label was given (--label).")
        return notes
    if not results["probes"]:
        notes.append(
            f"There are no probes, because too few training cells have {label['key']!r}, all have the same value, or "
            "no held-out cell has one of their values."
        )
    if label["unlabelled"]:
        notes.append(f"{label['unlabelled']:,} cells have no {label['key']!r} and are left out of the probes.")
    if label["unseen"]:
        kinds = ", ".join(f"{name} ({count})" for name, count in label["unseen"].items())
        notes.append(f"Held-out cells with labels that no training cell has are left out of the probes: {kinds}.")
    return notes

"""One evaluation: masked-gene scores and probes of a model, every control beside them, on plain and dithered ranks."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from data_shards.tokens.vocabulary import FIRST_GENE
from data_shards.workers.progress import Progress
from gm_train.config.schema import Config
from gm_train.evaluation import score_table
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.embeddings import F32, embed_cells, principal_components
from gm_train.evaluation.frequency_controls import Frequency, FrequencyByRank
from gm_train.evaluation.masked_genes import Predictor, Score, mask_cells, model_predictor, score_masked
from gm_train.evaluation.order_control import OrderControl
from gm_train.evaluation.probes import ProbeSplit, probe
from gm_train.evaluation.score_pictures import draw_embeddings, draw_scores
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.cell_keys import cell_keys

#: Seeds of the probes' subsamples; the random weights of a probe seed are drawn from the same number.
PROBE_SEEDS = 3
#: Share of a cell's genes that is hidden, whatever a model was trained with: scores of runs can be compared.
MASK_RATE = 0.15


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        results: everything in the tables, ready for JSON.
        embeddings: the model's and the PCA's features of all cells, float32 (n_cells, n_features), to be drawn; empty
            without labels.
        cells: the cells.
    """

    results: score_table.Row
    embeddings: dict[str, F32]
    cells: EvaluationCells

    def write(self, directory: Path) -> list[Path]:
        """Write `eval.json`, `eval.md` and the pictures; returns what was written."""
        directory.mkdir(parents=True, exist_ok=True)
        written = [directory / "eval.json", directory / "eval.md", directory / "eval-scores.png"]
        written[0].write_text(json.dumps(self.results, indent=1) + "\n")
        written[1].write_text(score_table.render_markdown(self.results))
        draw_scores(self.results, written[2])
        if self.embeddings and self.cells.labels is not None:
            written.append(directory / "eval-embedding.png")
            draw_embeddings(self.embeddings, self.cells.labels, self.results["label"]["key"], written[-1])
        return written


@dataclass(frozen=True)
class _Task:
    """What every score of one evaluation needs."""

    model: GeneMamba
    config: Config
    cells: EvaluationCells
    bar: Progress

    @property
    def vocabulary_size(self) -> int:
        return self.model.embedding.num_embeddings

    def random_model(self, seed: int) -> GeneMamba:
        """Random weights of the same shape, on the same device, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = GeneMamba(self.config.model, self.vocabulary_size)
        return model.eval().to(next(self.model.parameters()).device)


def evaluate(model: GeneMamba, config: Config, cells: EvaluationCells, trained_on: str, mask_seeds: int) -> Evaluation:
    """Score a model and its controls.

    Args:
        model: in evaluation mode.
        config: of its run.
        cells: training and held-out cells, from `read_cells`.
        trained_on: "plain" or "dithered", the ranks that the model was trained on.
        mask_seeds: times that genes are hidden anew, and that fresh models are drawn for "random weights".

    Raises:
        DataError: no gene is hidden.
    """
    split = ProbeSplit.of(cells.labels, cells.held_out) if cells.labels is not None else None
    probed = split is not None and split.usable
    masked: list[score_table.Row] = []
    probes: list[score_table.Row] = []
    embeddings: dict[str, F32] = {}
    order_control = {}
    # A mask seed scores five predictors; the model is embedded once, and a probe seed scores three kinds of features.
    steps = len(score_table.RANKS) * (5 * mask_seeds + (1 + 3 * PROBE_SEEDS) * probed)
    with Progress(total=steps, desc="evaluating", unit=" scores") as bar:
        task = _Task(model, config, cells, bar)
        pca = principal_components(cells.expression, ~cells.held_out) if probed else None
        for ranks in score_table.RANKS:
            rows, order_control[ranks] = _masked_rows(task, ranks, mask_seeds)
            masked += rows
            if split is None or pca is None:
                continue
            features = embed_cells(model, cells.ranked(ranks))
            bar.update()
            probes += _probe_rows(task, ranks, split, features, pca)
            if ranks == trained_on:
                embeddings = {f"GeneMamba, {ranks} ranks": features, f"PCA, {pca.shape[1]} components": pca}
    results: score_table.Row = {
        "model": {
            "arch": config.model.arch,
            "d_model": config.model.d_model,
            "n_layers": config.model.n_layers,
            "parameters": sum(p.numel() for p in model.parameters()),
            "language": config.objective.language,
            "trained_on": trained_on,
        },
        "cells": {
            "train": int((~cells.held_out).sum()),
            "held_out": int(cells.held_out.sum()),
            "genes": task.vocabulary_size - FIRST_GENE,
            "without_tokens": cells.n_empty,
            "data_sets_left_out": list(cells.missing),
        },
        "label": None,
        "mask_rate": MASK_RATE,
        "mask_seeds": mask_seeds,
        "probe_seeds": PROBE_SEEDS,
        "order_control": order_control,
        "masked": masked,
        "probes": probes,
    }
    if split is not None:
        results["label"] = {
            "key": cells.label,
            "train": len(split.train),
            "held_out": len(split.held_out),
            "unseen": split.unseen,
            "unlabelled": split.unlabelled,
        }
    results["notes"] = _notes(results)
    return Evaluation(results, embeddings, cells)


def _masked_rows(task: _Task, ranks: str, mask_seeds: int) -> tuple[list[score_table.Row], dict[str, float]]:
    """Scores on one kind of ranks, a row for the model and each control; and what the order control was tuned to."""
    cells, size = task.cells, task.vocabulary_size
    train = cells.ranked(ranks).take(np.flatnonzero(~cells.held_out))
    numbers = np.flatnonzero(cells.held_out)
    held_out = cells.ranked(ranks).take(numbers)
    order = OrderControl(train, size, MASK_RATE)
    fixed: dict[str, Predictor] = {
        score_table.MODEL: model_predictor(task.model),
        score_table.ORDER: order,
        score_table.BY_RANK: FrequencyByRank(train, size),
        score_table.FREQUENCY: Frequency(train, size),
    }
    scores: dict[str, list[Score]] = {name: [] for name in [*fixed, score_table.RANDOM]}
    for seed in range(mask_seeds):
        keys = cell_keys(seed, cells.data_set[numbers], cells.row[numbers])
        masked = mask_cells(held_out, keys, size, MASK_RATE)
        for name, predictor in {**fixed, score_table.RANDOM: model_predictor(task.random_model(seed))}.items():
            scores[name].append(score_masked(predictor, masked))
            task.bar.update()
    rows = [{"ranks": ranks, "scored": name, **_figures([asdict(s) for s in runs])} for name, runs in scores.items()]
    return rows, {"strength": order.strength, "smoothing": order.smoothing}


def _probe_rows(task: _Task, ranks: str, split: ProbeSplit, features: F32, pca: F32) -> list[score_table.Row]:
    """Probe scores on one kind of ranks, a row for the model and each control."""
    scores: dict[str, list[dict[str, float]]] = {score_table.MODEL: [], score_table.PCA: [], score_table.RANDOM: []}
    for seed in range(PROBE_SEEDS):
        random = embed_cells(task.random_model(seed), task.cells.ranked(ranks))
        for name, of_cells in ((score_table.MODEL, features), (score_table.PCA, pca), (score_table.RANDOM, random)):
            scores[name].append(probe(of_cells, split, seed))
            task.bar.update()
    return [{"ranks": ranks, "scored": name, **_figures(runs)} for name, runs in scores.items()]


def _figures(runs: list[dict[str, float]]) -> score_table.Row:
    return {key: score_table.figure([run[key] for run in runs]) for key in runs[0]}


def _notes(results: score_table.Row) -> list[str]:
    """What a reader must know about how the figures came about."""
    label = results["label"]
    said = [
        f"Each hidden gene ({results['mask_rate']:.0%} of a cell) shows the mask token; cross-entropy is over all "
        f"{results['cells']['genes']:,} genes for every row. Controls leave out a cell's visible genes and are counted "
        f"on {results['cells']['train']:,} training cells in the same ranks; the model is scored as it is.",
        "The order control was tuned on training cells: "
        + ", ".join(f"strength {t['strength']:g} on {ranks} ranks" for ranks, t in results["order_control"].items())
        + " (0 is plain frequency).",
    ]
    if results["model"]["language"] != "masked":
        said.append("The model was trained on next tokens, never on masked genes: its masked-gene scores say little.")
    if results["cells"]["without_tokens"]:
        said.append(f"{results['cells']['without_tokens']:,} cells have no gene of the vocabulary and are left out.")
    if left_out := results["cells"]["data_sets_left_out"]:
        said.append(f"Data sets of the store whose count files were not given are left out: {', '.join(left_out)}.")
    if label is None:
        said.append("No label was named (--label): no probes.")
        return said
    if not results["probes"]:
        said.append(f"{label['key']!r} has fewer than two values in training cells, or none held out: no probes.")
    if label["unlabelled"]:
        said.append(f"{label['unlabelled']:,} cells have no {label['key']!r} and are left out of the probes.")
    if label["unseen"]:
        kinds = ", ".join(f"{name} ({count})" for name, count in label["unseen"].items())
        said.append(f"Held-out cells with labels that no training cell has are left out of the probes: {kinds}.")
    return said

"""A run directory as a comparison reads it: settings, compute and scores."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import list_checkpoints
from gm_train.config.load import config_from_file, flat
from gm_train.config.schema import Config
from gm_train.evaluation.figures import Row
from gm_train.plan.model_size import n_parameters
from gm_train.run.records import METRICS, read_rows
from gm_train.run.starts import read_starts, refuse_no_run, start_of
from gm_train.train.run_report import EVAL_DIR


@dataclass(frozen=True)
class ComparedRun:
    """One run.

    Attributes:
        name: its directory as it was given.
        config: its settings.
        rows: those of `metrics.jsonl`, at least one of a step.
        starts: those of `environment.json`, oldest first; may be empty.
        results: its `eval.json`; None if it was not evaluated.
        parameters: of the model; None if neither an evaluation nor a checkpoint is there to tell.
        store: the hash of the store that its newest checkpoint was trained on; None without a checkpoint.
    """

    name: str
    config: Config
    rows: list[Row]
    starts: list[Row]
    results: Row | None
    parameters: int | None
    store: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by their full names, without the run's own directory."""
        return {key: value for key, value in flat(self.config).items() if key != "run.dir"}

    @property
    def question(self) -> tuple[str, str]:
        """What the loss is of: the task and the objective. Losses of different ones cannot be compared."""
        return self.config.task.name, self.config.objective.language

    @property
    def _steps(self) -> list[Row]:
        return [row for row in self.rows if "loss" in row]

    def compute(self) -> Row:
        """What the run has cost.

        Returns:
            `steps`, `cells`, `tokens`, `parameters`, `hours` (of rank 0's steps, without validation and checkpoints),
            `rank_hours` (of all ranks), `processor` (of the last start), `revision`; and of its
            evaluation `scored_step`, the step of the checkpoint, and `trained_on`, the ranks of the training. None
            where the run does not tell.
        """
        steps, last = self._steps, self.starts[-1] if self.starts else {}
        return {
            "steps": steps[-1]["step"],
            "cells": steps[-1]["position"],
            "tokens": sum(row["tokens"] for row in steps),
            "parameters": self.parameters,
            "hours": sum(row["step_s"] for row in steps) / 3600,
            "rank_hours": sum(row["step_s"] * self._ranks_at(row["step"]) for row in steps) / 3600,
            "processor": (last.get("gpus") or [last.get("processor")])[0],
            "revision": (last.get("git") or None),
            "scored_step": ((self.results or {}).get("checkpoint") or {}).get("step"),
            "trained_on": self.results["model"]["trained_on"] if self.results else None,
        }

    def _ranks_at(self, step: int) -> int:
        """Ranks of the start that made a step; 1 if no start was recorded."""
        made = start_of(self.starts, step)
        return int(made["ranks"]) if made else 1

    def validation(self) -> list[tuple[int, float]]:
        """The tokens that were trained on before each validation, and its loss."""
        points, tokens = [], 0
        for row in self.rows:
            tokens += row.get("tokens", 0)
            if row.get("val_loss") is not None:
                points.append((tokens, float(row["val_loss"])))
        return points


def read_run(path: Path) -> ComparedRun:
    """Read a run directory.

    Raises:
        DataError: it is no run, no step was recorded, or a file in it is damaged.
    """
    refuse_no_run(path)
    rows = read_rows(path / METRICS)
    if not any("loss" in row for row in rows):
        raise DataError(f"{path}: no step in {METRICS} to compare: train with `gm-train fit` first")
    config = config_from_file(path / "config.yaml")
    results = _json(path / EVAL_DIR / "eval.json", "`gm-train eval` writes it anew")
    starts = read_starts(path)
    parameters = results["model"]["parameters"] if results else None
    checkpoints, store = list_checkpoints(path / "checkpoints"), None
    if checkpoints:
        identity = _json(checkpoints[-1].path / "identity.json", "remove this checkpoint")
        store = (identity or {}).get("store")
    if parameters is None and checkpoints:
        vocabulary = Tokenizer.load(checkpoints[-1].path / "tokenizer").vocabulary
        parameters = n_parameters(config.model, vocabulary.size)
    return ComparedRun(str(path), config, rows, starts, results, parameters, store)


def _json(path: Path, way_out: str) -> Row | None:
    """Read a JSON file; None if there is none."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}): {way_out}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is damaged (not a JSON object): {way_out}")
    return content

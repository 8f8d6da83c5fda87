"""Score the fixed panel of `evaluation` while a run trains, on rank 0, with a copy of the weights."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from gm_train.config.schema import Config, EvaluationConfig
from gm_train.embedding.embed import default_precision
from gm_train.evaluation.panel.panel import PANEL_SCORES, Panel, best_controls
from gm_train.evaluation.panel.panel_cells import read_panel_cells
from gm_train.evaluation.panel.panel_controls import PanelControls, read_panel
from gm_train.loading.open_data import OpenData
from gm_train.model.build_model import build_model
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import Ranks
from gm_train.run.records import METRICS, read_rows
from gm_train.strategies.steps import Steps

log = logging.getLogger(__name__)

#: Before the key of a score, in the columns of `metrics.jsonl`.
PREFIX = "panel_"
#: Fewer held-out cells are scored with a warning.
FEW_CELLS = 50
#: Share of the time from which a warning says that the panel is scored too often.
MUCH_TIME = 0.1


def deciding_score(config: Config) -> str:
    """The key of `PANEL_SCORES` by which the best checkpoint is kept: `evaluation.best_by`, or by objective."""
    if config.evaluation.best_by != "auto":
        return config.evaluation.best_by
    return "masked" if config.objective.language == "masked" else "missing"


class BestScores:
    """The deciding score of each panel so far. Smaller is better: accuracies are kept with the other sign.

    Args:
        key: the deciding score.
        rows: the rows of `metrics.jsonl` that are of this panel.
    """

    def __init__(self, key: str, rows: list[dict[str, Any]]) -> None:
        self._column, self._sign = PREFIX + key, -1 if PANEL_SCORES[key].more_is_better else 1
        self.by_step: dict[int, float] = {}
        for row in rows:
            self.add(row["step"], row)

    def add(self, step: int, row: Mapping[str, Any]) -> bool:
        """Add the scores of a step. Returns whether the deciding one is the best so far; NaN never is."""
        value = row.get(self._column)
        if value is None or not math.isfinite(value):
            return False
        is_best = all(self._sign * value < other for other in self.by_step.values())
        self.by_step[step] = self._sign * value
        return is_best


def earlier_scores(directory: Path, step: int) -> dict[int, float]:
    """The deciding scores of a run's last panel, by step, as `BestScores.by_step`; empty if it has none.

    Args:
        directory: the run directory.
        step: later scores are left out.
    """
    panel = read_panel(directory)
    if not panel:
        return {}
    rows = [row for row in read_rows(directory / METRICS) if panel["since_step"] < row["step"] <= step]
    return BestScores(panel["decides"], rows).by_step


class LiveEvaluation:
    """Scores the panel every `evaluation.every_steps` steps.

    Rank 0 scores a copy of the weights, so nothing of the training changes; the other ranks wait for it.

    Args:
        config: of the run.
        data: the open data of the run.
        directory: the run directory.
        step: the step that this start continues from.
        ranks: this process among the others.

    Attributes:
        best: the deciding scores so far, on rank 0; None on the others.
        line: says what is scored, on rank 0.

    Raises:
        DataError: the store has no validation cell or no training cell, has no column `evaluation.label`, or the panel
            cannot give the score that decides.
    """

    def __init__(self, config: Config, data: OpenData, directory: Path, step: int, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        self._ended: float | None = None
        self._has_warned = False
        self.best: BestScores | None = None
        self.line = ""
        self._controls: PanelControls | None = None
        ranks.from_first(lambda: self._open(config, data, directory, step))

    def _open(self, config: Config, data: OpenData, directory: Path, step: int) -> None:
        settings, size = config.evaluation, data.tokenizer.vocabulary.size
        label = settings.label or None
        cells = read_panel_cells(data.reader.path, data.reader.manifest, settings.cells, label, config.data.weights)
        self._panel = Panel(cells, size)
        decides = deciding_score(config)
        self._check(settings, decides, int(cells.held_out.sum()))
        with torch.random.fork_rng(devices=[]):
            self._model = build_model(config, size).eval()
        n_held_out = int(cells.held_out.sum())
        about: dict[str, Any] = {
            "cells": {"train": len(cells.row) - n_held_out, "held_out": n_held_out},
            "label": label,
            "ranks": "dithered" if data.reader.manifest.dither else "plain",
            "scores": self._panel.scores,
            "decides": decides,
        }
        self._controls = PanelControls(directory, cells, size, step, about)
        titles = ", ".join(PANEL_SCORES[key].title.lower() for key in self._panel.scores)
        self.line = (
            f"panel: {n_held_out:,} validation and {len(cells.row) - n_held_out:,} training cells are scored every "
            f"{settings.every_steps:,} steps by {titles}; the best checkpoint by {decides} is kept"
        )
        rows = [row for row in read_rows(directory / METRICS) if self._controls.since_step < row["step"] <= step]
        self.best = BestScores(decides, rows)

    def _check(self, settings: EvaluationConfig, decides: str, n_held_out: int) -> None:
        if decides not in self._panel.scores:
            why = (
                f"too few of its training cells have {settings.label!r}, all have the same value, or no validation "
                "cell has one of their values"
                if decides == "knn"
                else "its cells have too few genes"
            )
            raise DataError(
                f"evaluation: the panel of {settings.cells:,} cells cannot give the score {decides!r} that "
                f"evaluation.best_by chooses: {why}. Choose one of {', '.join(self._panel.scores) or 'none'}, raise "
                "evaluation.cells, or set evaluation.every_steps=0"
            )
        if settings.label and "knn" not in self._panel.scores:
            log.warning(
                "evaluation.label=%s: too few training cells of the panel have it, all have the same value, or no "
                "validation cell has one of their values: the panel has no score of cell types", settings.label,
            )  # fmt: skip
        if n_held_out < FEW_CELLS:
            log.warning(
                "the panel has %d validation cells: its scores say little; hold out more (`gm-train data shards "
                "--validation`), or raise evaluation.cells", n_held_out,
            )  # fmt: skip

    def is_due(self, step: int) -> bool:
        """Whether the panel is scored after this step."""
        return step % self._config.evaluation.every_steps == 0

    def score(self, steps: Steps, model: GeneMamba, step: int) -> tuple[dict[str, float], bool]:
        """Score the weights; all ranks call this together.

        Args:
            steps: the strategy.
            model: whole or sharded; it is not changed.
            step: the last step.

        Returns:
            Columns of a row of `metrics.jsonl`: each score, how far it is beyond the best control, and the seconds that
            training has waited (`panel_s`); and whether the deciding score is the best so far.
        """
        begun = time.perf_counter()
        weights = steps.whole_weights(model)
        device = next(model.parameters()).device

        def on_first() -> tuple[dict[str, float], bool]:
            row = self._score(weights, device)
            assert self.best is not None
            is_best = self.best.add(step, row)
            row[f"{PREFIX}s"] = time.perf_counter() - begun
            self._warn_of_time(row[f"{PREFIX}s"])
            return row, is_best

        return self._ranks.from_first(on_first)

    def _score(self, weights: dict[str, torch.Tensor], device: torch.device) -> dict[str, float]:
        self._model.load_state_dict(weights)
        scores = self._panel.score(self._model.to(device), default_precision(self._config, device))
        self._model.to("cpu")  # leaves the memory to the training
        assert self._controls is not None
        best = best_controls(self._controls.scores())
        row = {}
        for key, value in scores.items():
            row[PREFIX + key] = value
            if key in best:
                row[f"{PREFIX}{key}_beyond"] = PANEL_SCORES[key].beyond(value, best[key][1])
        return row

    def _warn_of_time(self, seconds: float) -> None:
        """Log a warning, at most once, if the panel takes much of the time since the last one."""
        earlier, self._ended = self._ended, time.perf_counter()
        if earlier is None:  # the first one also compiles, and may wait for the controls
            return
        share = seconds / (self._ended - earlier)
        if share > MUCH_TIME and not self._has_warned:
            self._has_warned = True
            log.warning(
                "scoring the panel takes %.0f %% of the time: raise evaluation.every_steps, or lower evaluation.cells",
                100 * share,
            )

    def start(self) -> None:
        """Start to compute the controls in the background, if the run directory does not have them.

        Raises:
            DataError: the run directory cannot be written.
        """

        def on_first() -> None:
            if self._controls is not None:
                self._controls.start()

        self._ranks.from_first(on_first)

    def close(self) -> None:
        """End the process of the controls, if it still runs."""
        if self._controls is not None:
            self._controls.close()

"""What a run's report says about its panel: the scores over its steps, beside the controls, and the best checkpoint."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gm_train.checkpoint.find import best_of, list_checkpoints
from gm_train.evaluation.panel.panel import PANEL_SCORES, best_controls
from gm_train.evaluation.panel.panel_controls import read_panel
from gm_train.run.curves import DPI, F64, column
from gm_train.train.live_evaluation import PREFIX, BestScores

Row = dict[str, Any]
#: Colours of the controls, in their order.
_COLORS = ("#c44e52", "#8172b3", "#937860")


@dataclass(frozen=True)
class PanelSummary:
    """The panel of a run.

    Attributes:
        caption: what was scored on which cells.
        headings, lines: of a table with a line for each score.
        notes: sentences on the best checkpoint, on the time, and on what is missing.
        pictures: a PNG for each score, by its key.
    """

    caption: str
    headings: list[str]
    lines: list[list[str]]
    notes: list[str]
    pictures: dict[str, bytes]


def summarize_panel(run_dir: Path, rows: list[Row]) -> PanelSummary | None:
    """Summarise the present panel of a run, and draw its curves; None if it was not scored yet.

    Args:
        run_dir: the run directory.
        rows: the rows of `metrics.jsonl`.
    """
    panel = read_panel(run_dir)
    scored = [row for row in rows if f"{PREFIX}s" in row and row["step"] > panel.get("since_step", 0)]
    if not panel or not scored:
        return None
    controls = panel["controls"] or {}
    lines: list[list[str]] = []
    pictures: dict[str, bytes] = {}
    for key in panel["scores"]:
        score, (steps, values) = PANEL_SCORES[key], column(scored, PREFIX + key)
        if not len(steps):
            continue
        line = [f"{score.title}, {score.unit.rpartition(' ')[2]}", f"{steps[-1]:,.0f}"]
        line.append(f"{values[-1]:.{score.decimals}f}")
        if key in controls:
            name, value = best_controls(controls)[key]
            beyond = score.beyond(values[-1], value)
            line += [f"{value:.{score.decimals}f} ({name})", f"{beyond:+.{score.decimals}f}"]
        lines.append(line + [""] * (5 - len(line)))
        pictures[key] = _draw(key, steps, values, controls.get(key, {}))
    cells = panel["cells"]
    caption = f"{cells['held_out']:,} validation cells, {panel['ranks']} ranks"
    headings = ["score", "step", "last", "best control", "beyond it"]
    return PanelSummary(caption, headings, lines, _notes(run_dir, panel, rows, scored), pictures)


def _notes(run_dir: Path, panel: Row, rows: list[Row], scored: list[Row]) -> list[str]:
    scores = BestScores(panel["decides"], scored)
    best = best_of(list_checkpoints(run_dir / "checkpoints"), scores.by_step)
    decides = PANEL_SCORES[panel["decides"]]
    notes = []
    if scores.by_step:
        first = min(scores.by_step, key=lambda step: (scores.by_step[step], step))
        value = f"{abs(scores.by_step[first]):.{decides.decimals}f} {decides.unit.rpartition(' ')[2]}"
        notes.append(
            f"Best checkpoint by {decides.title.lower()}: {best.path.name} ({value}). It is kept."
            if best is not None and best.step == first
            else f"Best by {decides.title.lower()}: step {first:,} ({value}), which has no checkpoint any more."
        )
    waited = sum(column(scored, f"{PREFIX}s")[1])
    since = [row for row in rows if row["step"] > panel["since_step"]]
    trained = sum(column(since, "step_s")[1])
    notes.append(
        f"The panel was scored {len(scored):,} times; training waited {waited:,.0f} s for it, "
        f"{waited / (waited + trained):.1%} of the time."
    )
    notes.append(
        f"The controls learn from {panel['cells']['train']:,} training cells, and know their ranks alone: a store has "
        "no counts. The hidden and missing genes are the same at each step."
    )
    if panel["controls"] is None:
        notes.append("The controls were not finished; the next start of this run computes them.")
    if "knn" not in panel["scores"]:
        notes.append("There is no score of cell types: evaluation.label names no column with enough of them.")
    return notes


def _draw(key: str, steps: F64, values: F64, controls: dict[str, float]) -> bytes:
    """Draw one score by step, and its controls as lines; returns a PNG."""
    score = PANEL_SCORES[key]
    figure = Figure(figsize=(4.6, 3.7), layout="constrained")
    axis = figure.subplots()
    axis.plot(steps, values, "o-", color="#4c72b0", markersize=3, linewidth=1.3, label="model")
    for color, (name, value) in zip(_COLORS, controls.items(), strict=False):
        axis.axhline(value, color=color, linestyle="--", linewidth=1.1, label=name)
    axis.set_title(score.title, fontsize=11)
    axis.set_ylabel(f"{score.unit} ({'higher' if score.more_is_better else 'lower'} is better)")
    axis.set_xlabel("optimizer step")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, format="png")
    return file.getvalue()

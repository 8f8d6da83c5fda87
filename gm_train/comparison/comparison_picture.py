"""Draw a comparison: validation losses over tokens, and the scores of each task beside their controls."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gm_train.comparison.run_groups import RunGroup
from gm_train.evaluation.figures import RANKS, Row

#: Panels side by side.
ACROSS = 3
DPI = 150
_GREYS = ("#8c8c8c", "#a6a6a6", "#bfbfbf", "#d4d4d4", "#e4e4e4")


def draw_comparison(results: dict[str, Any], groups: Sequence[RunGroup], path: Path) -> None:
    """Draw a comparison (PNG).

    Args:
        results: of a comparison.
        groups: its runs.
        path: of the picture.
    """
    n = 1 + len(results["panels"])
    across = min(ACROSS, n)
    down = -(-n // across)
    figure = Figure(figsize=(5.2 * across, 3.9 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    palette = mpl.color_sequences["tab10"]
    colours = {group.label: palette[number % len(palette)] for number, group in enumerate(groups)}
    _draw_losses(axes[0], groups, colours)
    for axis, (key, panel) in zip(axes[1:], results["panels"].items(), strict=False):
        _draw_scores(axis, panel, [table for table in results["tables"] if table["task"] == key], colours)
    for axis in axes[n:]:
        axis.set_axis_off()
    figure.savefig(path, dpi=DPI)


def _draw_losses(axis: Axes, groups: Sequence[RunGroup], colours: dict[str, Any]) -> None:
    drawn = False
    for group in groups:
        name = f"{group.label} {group.runs[0].name}" + (f" and {n} more" if (n := len(group.runs) - 1) else "")
        for run in group.runs:
            points = np.array(run.validation()).reshape(-1, 2)
            if len(points):
                axis.plot(*points.T, "o-", color=colours[group.label], markersize=3, linewidth=1.2, label=name)
                name, drawn = "_nolegend_", True
    if drawn:
        axis.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    else:
        axis.text(0.5, 0.5, "no run was validated", ha="center", transform=axis.transAxes, color="#666666")
    questions = {run.question for group in groups for run in group.runs}
    axis.set_title("Validation loss" + (", objectives differ" if len(questions) > 1 else ""), fontsize=11)
    axis.set_xlabel("tokens trained on")
    axis.set_ylabel("nats")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_scores(axis: Axes, panel: Row, tables: Sequence[Row], colours: dict[str, Any]) -> None:
    """Draw the main column of a task as bars: groups in colours, controls in grey."""
    column, decimals = panel["column"], panel["decimals"]
    rows: list[Row] = [
        {"ranks": table["ranks"], **row}
        for table in tables
        for row in table["rows"]
        if column in row and row["kind"] != "difference"
    ]
    controls = list(dict.fromkeys(row["scored"] for row in rows if row["kind"] == "control"))
    greys = {name: _GREYS[number % len(_GREYS)] for number, name in enumerate(controls)}
    names = list(dict.fromkeys(row["scored"] for row in rows))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        values = {row["ranks"]: row[column] for row in rows if row["scored"] == name}
        at = [RANKS.index(ranks) + (i - (len(names) - 1) / 2) * width for ranks in values]
        bars = axis.bar(
            at,
            [value["mean"] for value in values.values()],
            width * 0.92,
            yerr=[value["sd"] or 0.0 for value in values.values()],
            color=colours.get(name) or greys[name],
            label=name,
            error_kw={"elinewidth": 1},
        )
        axis.bar_label(bars, [f"{value['mean']:.{decimals}f}" for value in values.values()], fontsize=6.5, padding=2)
    axis.set_xticks(range(len(RANKS)), [f"{ranks} ranks" for ranks in RANKS])
    axis.set_ylabel(panel["unit"])
    axis.set_title(panel["title"], fontsize=11)
    axis.margins(y=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))

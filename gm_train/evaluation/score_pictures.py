"""Draw the scores of an evaluation beside those of the controls."""

from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from gm_train.evaluation import figures
from gm_train.evaluation.figures import Row
from gm_train.evaluation.picture_text import literal
from gm_train.evaluation.tasks import TASKS

DPI = 150
#: Charts side by side.
_ACROSS = 3

_COLOURS = {
    figures.MODEL: "#c44e52",
    figures.PCA: "#4c72b0",
    figures.NEIGHBOURS: "#7f9bc8",
    figures.VARIABLE: "#7f9bc8",
    figures.ORDER: "#4c72b0",
    figures.BY_RANK: "#7f9bc8",
    figures.FREQUENCY: "#a9bbd9",
    figures.COEXPRESSION: "#4c72b0",
    figures.LEVEL: "#a9bbd9",
    figures.STATES: "#dd9a9c",
    figures.EMBEDDINGS: "#eec5c6",
    figures.REGRESSION: "#7f9bc8",
    figures.RANDOM: "#bbbbbb",
    figures.BY_TYPE: "#7f9bc8",
    figures.BY_BATCH: "#a9bbd9",
}
_OTHER_COLOURS = (*mpl.color_sequences["Dark2"], *mpl.color_sequences["tab20b"])


def draw_scores(results: Row, path: Path) -> None:
    """Draw one column of each task as bars, on both kinds of ranks (PNG)."""
    charts = [task for task in TASKS if results.get(task.key)]
    shown = dict.fromkeys(row["scored"] for task in charts for row in results[task.key])
    # Such as vectors that were made elsewhere.
    others = [name for name in shown if name not in _COLOURS]
    colour_of = _COLOURS | dict(zip(others, cycle(_OTHER_COLOURS)))
    across = min(_ACROSS, len(charts))
    down = -(-len(charts) // across)
    figure = Figure(figsize=(5.2 * across, 3.6 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(charts) :]:
        axis.set_axis_off()
    for axis, task in zip(axes[: len(charts)], charts, strict=True):
        rows = results[task.key]
        column, title, unit, decimals = task.chart_of(rows)
        names = list(dict.fromkeys(row["scored"] for row in rows))
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            values = [
                next(r for r in rows if r["ranks"] == ranks and r["scored"] == name)[column] for ranks in figures.RANKS
            ]
            at = np.arange(len(figures.RANKS)) + (i - (len(names) - 1) / 2) * width
            bars = axis.bar(
                at,
                [f["mean"] for f in values],
                width * 0.92,
                yerr=[f["sd"] or 0.0 for f in values],
                color=colour_of[name],
                label=literal(name),
                error_kw={"elinewidth": 1},
            )
            axis.bar_label(bars, [f"{f['mean']:.{decimals}f}" for f in values], fontsize=7, padding=2)
        trained = results["model"]["trained_on"]
        axis.set_xticks(
            range(len(figures.RANKS)),
            [f"{r} ranks" + (" (as trained)" if r == trained else "") for r in figures.RANKS],
        )
        axis.set_ylabel(unit)
        axis.set_title(literal(title.format(**results)), fontsize=11)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.suptitle(f"the model at step {results['checkpoint']['step']:,}", fontsize=9, color="#666666")
    figure.savefig(path, dpi=DPI)

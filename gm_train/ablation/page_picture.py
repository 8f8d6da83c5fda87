"""Draw an ablation: the main scores of each task, a line for each variant and control, a dot for each seed."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gm_train.ablation.score_tables import Scored, main_columns
from gm_train.ablation.seed_statistics import over_seeds
from gm_train.evaluation.figures import MODEL, RANKS, Column
from gm_train.evaluation.picture_text import literal
from gm_train.evaluation.task import EvaluationTask
from gm_train.evaluation.tasks import TASKS

_DPI = 150
_ACROSS = 3
_COLOURS = {RANKS[0]: "#1f77b4", RANKS[1]: "#d95f02"}
_GREY = "#8c8c8c"


def draw_ablation(question: str, scored: Scored, path: Path) -> None:
    """Draw an ablation (PNG).

    Args:
        question: the title.
        scored: scores by variant and seed.
        path: of the picture.
    """
    panels = [(task, column) for task in TASKS for column in main_columns(scored, task, RANKS[0])]
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    lines = len(scored.of) + max((len(task.controls) for task, _ in panels), default=0)
    figure = Figure(figsize=(5.0 * across, down * (1.3 + 0.3 * lines) + 0.6), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, (task, column) in zip(axes, panels, strict=False):
        _draw(axis, scored, task, column)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle("\n".join(textwrap.wrap(literal(question), 55 * across)), fontsize=11)
    marks = [Line2D([], [], marker="o", linestyle="", color=_COLOURS[ranks], label=f"{ranks} ranks") for ranks in RANKS]
    marks.append(Line2D([], [], marker="|", linestyle="", markersize=10, color="black", label="mean"))
    marks.append(Line2D([], [], marker="o", linestyle="", color=_GREY, label="control"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=8)
    figure.savefig(path, dpi=_DPI)


def _draw(axis: Axes, scored: Scored, task: type[EvaluationTask], column: Column) -> None:
    """Draw one column of a task: variants from above, then controls, each as seen beside the first variant."""
    key, _, what, _, more = column
    base = next(iter(scored.of))
    entries = [(variant, variant, MODEL) for variant in scored.of] + [(name, base, name) for name in task.controls]
    for number, (_, variant, name) in enumerate(entries):
        for offset, ranks in zip((-0.14, 0.14), RANKS, strict=True):
            scores = scored.scores(variant, task.key, ranks, name, key)
            if not scores:
                continue
            y = number + offset
            colour = _COLOURS[ranks] if name == MODEL else _GREY
            axis.plot(
                list(scores.values()), [y] * len(scores), "o", color=colour, markersize=3.5, alpha=0.7, clip_on=False
            )
            axis.plot([over_seeds(scores)["mean"]], [y], "|", color="black", markersize=9)
    axis.axhline(len(scored.of) - 0.5, color="#cccccc", linewidth=0.8)
    axis.set_yticks(range(len(entries)), [literal(label) for label, *_ in entries], fontsize=8)
    axis.set_ylim(len(entries) - 0.5, -0.5)
    axis.set_title("\n".join(textwrap.wrap(what, 46)), fontsize=9)
    axis.set_xlabel("higher is better" if more else "lower is better", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)

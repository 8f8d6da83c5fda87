"""The scores of an annotator as text, and its confusion matrix as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gm_train.annotation.annotator_scores import ANNOTATOR
from gm_train.evaluation.figures import Row
from gm_train.evaluation.score_table import aligned, label_table

_DPI = 110
#: Classes whose names are written; more would not be readable.
_MOST_NAMES = 100


def render_scores(results: Row) -> str:
    """The table of the annotator and its controls, and what it does with cells that it is not sure about."""
    cells, unknown = results["cells"], results["unknown"]
    others = f"; {cells['of_other_classes']:,} more are of classes that were not learned" * (
        cells["of_other_classes"] > 0
    )
    lines = [
        f"{results['label']!r} of {cells['held_out']:,} {results['split']} cells, learned from {cells['train']:,} "
        f"training cells{others}",
        *aligned(*label_table(results["scores"])),
        "* best of the column; ± is over probe seeds",
    ]
    if unknown["threshold"] is None:
        lines.append(
            f"unknown: every cell, because no threshold keeps wrong labels at {unknown['max_error']:.0%} on the "
            "validation cells; `gm-train predict --threshold P` sets one"
        )
        return "\n".join(lines)
    share = unknown["wrong"] / max(1, unknown["labelled"])
    lines.append(
        f"unknown below a probability of {unknown['threshold']:.3f}: {unknown['labelled']:,} of {cells['held_out']:,} "
        f"cells get a label, {share:.1%} of these a wrong one (calibrated for {unknown['max_error']:.0%})"
    )
    if cells["of_other_classes"]:
        n, labelled = cells["of_other_classes"], unknown["other_labelled"]
        lines.append(f"of the {n:,} cells of other classes, {n - labelled:,} are called unknown")
    return "\n".join(lines)


def render_markdown(results: Row) -> str:
    """A page with the scores, and precision, recall and F1 of each class."""
    lines = [
        f"# {results['label']}",
        "",
        f"Scores of {results['checkpoint']['path']}, step {results['checkpoint']['step']:,}.",
        "",
        "```",
        render_scores(results),
        "```",
        "",
        "![Confusion matrix](annotation.png)",
        "",
        f"| class | training cells | {results['split']} cells | precision % | recall % | F1 % |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in results["classes"]:
        scores = " | ".join(f"{row[key]:.1f}" if row["held_out"] else "" for key in ("precision", "recall", "f1"))
        lines.append(f"| {row['name']} | {row['train']:,} | {row['held_out']:,} | {scores} |")
    return "\n".join(lines) + "\n"


def draw_confusion(results: Row, path: Path) -> None:
    """Draw the confusion matrix as shares of each true class (PNG).

    Args:
        results: of `score_annotator`.
        path: the file to write.
    """
    counts = np.array(results["confusion"], np.float64)
    names = [row["name"] for row in results["classes"]]
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = 3.2 + 0.2 * min(len(names), _MOST_NAMES)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.7)
    if len(names) <= _MOST_NAMES:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.set_xlabel(f"predicted by the {ANNOTATOR}, without unknown")
    axis.set_ylabel(f"{results['label']} of {results['cells']['held_out']:,} {results['split']} cells")
    figure.savefig(path, dpi=_DPI)

"""The scores of an annotator as text, and its confusion matrix as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gm_train.annotation.annotator_scores import ANNOTATOR
from gm_train.evaluation.figures import Row, gap
from gm_train.evaluation.score_table import aligned, label_table

_DPI = 110
#: Classes whose names are written; more would not be readable.
_MOST_NAMES = 100


def render_scores(results: Row) -> str:
    """The table of the annotator and its controls, and what it does with cells that it is not sure about."""
    cells = results["cells"]
    lines = [
        f"{results['label']!r} of {cells['held_out']:,} {results['split']} cells; the annotator has learned from "
        f"{cells['train']:,} training cells, the probes from {cells['probes_train']:,}",
        *aligned(*label_table(results["scores"])),
        "* best of the column; ± is the standard deviation over draws of the probes' cells",
        verdict(results),
    ]
    return "\n".join([*lines, render_unknown(results)])


def verdict(results: Row) -> str:
    """Say in a sentence which of the other ways are better than the annotator, by accuracy."""
    own, *others = results["scores"]
    parts: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for row in others:
        text = f"{row['scored']} ({row['accuracy']['mean']:.1f})"
        parts[gap(own["accuracy"], row["accuracy"], more_is_better=True)].append(text)
    words = {1: "beats", 0: "is level with", -1: "loses to"}
    said = "; ".join(f"{words[key]} {', '.join(names)}" for key, names in parts.items() if names)
    return f"by accuracy, the annotator ({own['accuracy']['mean']:.1f} %) {said}"


def render_unknown(results: Row) -> str:
    """What the annotator does with cells that it is not sure about, those of other classes included."""
    cells, unknown = results["cells"], results["unknown"]
    if unknown["threshold"] is None:
        return (
            f"every cell is unknown: the validation cells cannot show that at most {unknown['max_error']:.0%} of the "
            "labels would be wrong; `gm-train predict --threshold P` sets a threshold by hand"
        )
    n_cells = cells["held_out"] + cells["of_other_classes"]
    labelled = unknown["labelled"] + unknown["other_labelled"]
    wrong = unknown["wrong"] + unknown["other_labelled"]
    others = ""
    if cells["of_other_classes"]:
        others = (
            f"; of the {cells['of_other_classes']:,} cells of classes that were not learned, "
            f"{unknown['other_labelled']:,} get one"
        )
    return (
        f"from a probability of {unknown['threshold']:.3f} on, {labelled:,} of {n_cells:,} cells get a label, "
        f"{wrong / max(1, labelled):.1%} of these a wrong one (validation cells said at most "
        f"{unknown['max_error']:.0%}){others}"
    )


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

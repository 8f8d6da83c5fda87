"""Draw an evaluation: scores beside those of the controls, and cell embeddings in two dimensions."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from gm_train.evaluation import figures
from gm_train.evaluation.figures import Row
from gm_train.evaluation.labels import Labels
from gm_train.evaluation.tasks import TASKS

#: Largest number of cells drawn: t-SNE of more cells takes minutes and shows nothing more.
MAX_DRAWN = 1_500
#: Labels with a colour of their own; the rarer ones share one colour.
MAX_COLOURED = 19
DPI = 150
#: Panels of scores side by side.
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
    figures.RANDOM: "#bbbbbb",
}


def draw_scores(results: Row, path: Path) -> None:
    """Draw one column of each task as bars, on both kinds of ranks (PNG)."""
    panels = [task for task in TASKS if results.get(task.key)]
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.2 * across, 3.6 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, task in zip(axes[: len(panels)], panels, strict=True):
        rows = results[task.key]
        column, title, unit, decimals = task.panel_of(rows)
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
                color=_COLOURS.get(name, "#8c8c8c"),
                label=name,
                error_kw={"elinewidth": 1},
            )
            axis.bar_label(bars, [f"{f['mean']:.{decimals}f}" for f in values], fontsize=7, padding=2)
        trained = results["model"]["trained_on"]
        axis.set_xticks(
            range(len(figures.RANKS)),
            [f"{r} ranks" + (" (as trained)" if r == trained else "") for r in figures.RANKS],
        )
        axis.set_ylabel(unit)
        axis.set_title(title.format(**results), fontsize=11)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7.5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.suptitle(f"the model at step {results['checkpoint']['step']:,}", fontsize=9, color="#666666")
    figure.savefig(path, dpi=DPI)


def draw_embeddings(embeddings: dict[str, npt.NDArray[np.float32]], labels: Labels, label: str, path: Path) -> None:
    """Draw t-SNE maps of several embeddings of the same cells, side by side, coloured by label (PNG).

    Args:
        embeddings: title to features, float32 (n_cells, n_features).
        labels: object (n_cells,), None where a cell has no label.
        label: name of the label, the title of the legend.
        path: of the picture.
    """
    drawn = np.sort(np.random.default_rng(0).permutation(len(labels))[:MAX_DRAWN])
    shown = np.array(["(none)" if name is None else str(name) for name in labels[drawn]])
    names, counts = np.unique(shown, return_counts=True)
    names = names[np.argsort(-counts, kind="stable")]
    colours = [*mpl.color_sequences["tab20"][:MAX_COLOURED], "#dddddd"]
    if len(names) > MAX_COLOURED + 1:
        others = f"{len(names) - MAX_COLOURED} others"
        shown = np.where(np.isin(shown, names[:MAX_COLOURED]), shown, others)
        names = np.append(names[:MAX_COLOURED], others)
    figure = Figure(figsize=(4.4 * len(embeddings) + 2.4, 4.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(embeddings)))
    for axis, (title, features) in zip(axes, embeddings.items(), strict=True):
        points = _two_dimensions(features[drawn])
        for name, colour in zip(names, colours, strict=False):
            here = shown == name
            axis.scatter(points[here, 0], points[here, 1], s=10, color=colour, linewidths=0, label=_short(str(name)))
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("t-SNE 1")
        axis.set_ylabel("t-SNE 2")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_box_aspect(1)
    handles, texts = axes[-1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False, fontsize=7.5, markerscale=1.8, title=label)
    figure.savefig(path, dpi=DPI)


def _two_dimensions(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute t-SNE: float32 (n_cells, 2)."""
    perplexity = min(30.0, (len(features) - 1) / 3)
    init = "pca" if features.shape[1] > 1 else "random"
    return np.asarray(TSNE(perplexity=perplexity, init=init, random_state=0).fit_transform(features), dtype=np.float32)


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:16]} … {name[-13:]}"

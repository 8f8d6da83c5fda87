"""The curves of a run as a picture: losses, gradient norm, learning rate and throughput by step."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Most points of a curve. Longer runs are drawn as means over stretches of equally many rows.
MAX_POINTS = 400
DPI = 150

Row = dict[str, Any]
F64 = npt.NDArray[np.float64]


def column(rows: list[Row], key: str) -> tuple[F64, F64]:
    """Return steps and values, float64 (n,) each, of the rows with a finite number under `key`."""
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def thin(steps: F64, values: F64) -> tuple[F64, F64]:
    """Return means over stretches of rows, at most `MAX_POINTS` of them.

    Args and returns: steps and values, float64 (n,) each.
    """
    stretches = np.array_split(np.arange(len(steps)), min(MAX_POINTS, max(1, len(steps))))
    return tuple(np.array([part[s].mean() for s in stretches if len(s)]) for part in (steps, values))  # type: ignore[return-value]


def draw_curves(rows: list[Row], skipped: list[Row], path: Path) -> None:
    """Draw the curves of a run (PNG).

    Args:
        rows: the rows of `metrics.jsonl`, of steps and of validations.
        skipped: the rows of `skipped.jsonl`; they are marked in the panel of the gradient norm.
        path: the PNG file to write.
    """
    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    losses: tuple[tuple[Axes, str, str | None, str | None, str], ...] = (
        (axes[0], "Loss", "loss", "val_loss", r"$L_{lang} + \gamma\,L_{pathway}$, nats"),
        (axes[1], "Language loss", "l_lang", "val_l_lang", "$L_{lang}$, nats"),
        (axes[2], "Pathway loss", "l_pathway", "val_l_pathway", "$L_{pathway}$, nats"),
    )
    if any("val_accuracy" in row for row in rows):
        losses = (
            (axes[0], "Loss", "loss", "val_loss", "cross-entropy, weighted by class, nats"),
            (axes[1], "Accuracy", None, "val_accuracy", "share of validation cells"),
            (axes[2], "Macro-F1", None, "val_macro_f1", "mean over classes"),
        )
    for axis, title, train, validation, unit in (
        *losses,
        (axes[3], "Gradient norm", "grad_norm", None, "norm before clipping"),
        (axes[4], "Learning rate", "lr", None, "learning rate"),
        (axes[5], "Throughput", "tokens_per_s", None, "real tokens / s"),
    ):
        _draw(axis, rows, train, validation)
        axis.set_title(title, fontsize=11)
        axis.set_ylabel(unit)
        axis.set_xlabel("optimizer step")
    bad = [row["step"] for row in skipped if row["event"] == "skipped"]
    if bad:
        axes[3].plot(bad, np.zeros(len(bad)), "x", color="#c44e52", markersize=6, label=f"skipped ({len(bad)})")
        axes[3].legend(frameon=False, fontsize=8)
    axes[4].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[5].set_ylim(bottom=0)
    axes[5].yaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, dpi=DPI)


def _draw(axis: Axes, rows: list[Row], train: str | None, validation: str | None) -> None:
    if train is not None:
        axis.plot(*thin(*column(rows, train)), color="#4c72b0", linewidth=1.1, label="training")
    if validation is not None:
        steps, values = column(rows, validation)
        if len(steps):
            axis.plot(steps, values, "o:", color="#dd8452", markersize=4, linewidth=1.2, label="validation")
            axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)

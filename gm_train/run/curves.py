"""The curves of a run as pictures: losses, gradient norm, learning rate, speed and waiting, by step."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave

#: Most points of a curve. Longer runs are drawn as means over stretches of equally many rows.
MAX_POINTS = 400
DPI = 150
#: Inches. A picture has one panel, so that its text can still be read where a page is as narrow as a phone.
SIZE = (4.6, 3.1)
#: Left, bottom, width and height of a panel's axes, as shares of the picture.
_AXES = (0.21, 0.16, 0.76, 0.75)
#: Panels side by side in `joined`.
_ACROSS = 4

Row = dict[str, Any]
F64 = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Curve:
    """A panel: what is drawn of the rows, and how.

    Attributes:
        title: of the panel.
        unit: of its vertical axis.
        column: of the rows of steps; None for what only validations have.
        validation: of the rows of validations; None for what they do not have.
        from_zero: whether the axis begins at zero.
        marks_skipped: whether skipped steps are marked.
    """

    title: str
    unit: str
    column: str | None
    validation: str | None = None
    from_zero: bool = False
    marks_skipped: bool = False


_LOSSES = (
    Curve("Loss", r"$L_{lang} + \gamma\,L_{pathway}$, nats", "loss", "val_loss"),
    Curve("Language loss", "$L_{lang}$, nats", "l_lang", "val_l_lang"),
    Curve("Pathway loss", "$L_{pathway}$, nats", "l_pathway", "val_l_pathway"),
)
_OF_A_LABEL = (
    Curve("Loss", "cross-entropy, weighted by class, nats", "loss", "val_loss"),
    Curve("Accuracy", "share of validation cells", None, "val_accuracy"),
    Curve("Macro-F1", "mean over classes", None, "val_macro_f1"),
)
_STEPS = (
    Curve("Gradient norm", "norm before clipping", "grad_norm", marks_skipped=True),
    Curve("Learning rate", "learning rate", "lr"),
    Curve("Throughput", "real tokens / s", "tokens_per_s", from_zero=True),
    Curve("MFU", "% of the devices' peak", "mfu_percent", from_zero=True),
    Curve("Model FLOP/s", "GFLOP / s, all ranks", "gflops_per_s", from_zero=True),
    Curve("Waiting for the loader", "% of a step", "loader_percent", from_zero=True),
)


def curves_of(rows: Sequence[Row]) -> list[Curve]:
    """The panels that rows can fill: the losses of the run's task, then what all runs have."""
    losses = _OF_A_LABEL if any("val_accuracy" in row for row in rows) else _LOSSES
    found = {key for row in rows for key, value in row.items() if value is not None}
    return [curve for curve in (*losses, *_STEPS) if found & {curve.column, curve.validation}]


def column(rows: Sequence[Row], key: str) -> tuple[F64, F64]:
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


def draw_curve(curve: Curve, rows: Sequence[Row], restarts: Sequence[int], skipped: Sequence[int]) -> Pixels:
    """Draw a panel.

    Args:
        curve: what to draw.
        rows: of steps and of validations.
        restarts: the steps after which the run was started again.
        skipped: the steps that changed no weight.

    Returns:
        uint8 (height, width, 4), red, green, blue and opacity; panels are equally large.
    """
    figure = Figure(figsize=SIZE)  # without a layout engine, which takes half of the time
    axis = figure.add_axes(_AXES)
    if curve.column is not None:
        axis.plot(*thin(*column(rows, curve.column)), color="#4c72b0", linewidth=1.2, label="training")
    if curve.validation is not None:
        steps, values = column(rows, curve.validation)
        if len(steps):
            axis.plot(steps, values, "o:", color="#dd8452", markersize=4, linewidth=1.2, label="validation")
    if curve.from_zero:
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter("{x:,.5g}")
    if curve.column == "lr":
        axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _mark(axis, restarts, skipped if curve.marks_skipped else ())
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(frameon=False, fontsize=8)
    axis.set_title(curve.title, fontsize=11)
    axis.set_ylabel(curve.unit)
    axis.set_xlabel("optimizer step")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=DPI)
    width, height = (round(inches * DPI) for inches in SIZE)
    return np.frombuffer(file.getvalue(), dtype=np.uint8).reshape(height, width, 4)


def _mark(axis: Axes, restarts: Sequence[int], skipped: Sequence[int]) -> None:
    """Mark restarts by lines, and skipped steps by crosses at the foot of the panel."""
    for number, step in enumerate(restarts):
        label = f"restarts ({len(restarts)})" if number == 0 else None
        axis.axvline(step, color="#777777", linestyle="--", linewidth=0.9, label=label)
    if skipped:
        foot = axis.get_xaxis_transform()
        axis.plot(
            skipped, [0.02] * len(skipped), "x", color="#c44e52", markersize=6, transform=foot,
            label=f"skipped ({len(skipped)})",
        )  # fmt: skip


def png(pixels: Pixels) -> bytes:
    """Encode a picture, uint8 (height, width, 4)."""
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return file.getvalue()


def joined(panels: Sequence[Pixels]) -> Pixels:
    """Put panels of one size into one picture, some side by side; uint8 (height, width, 4)."""
    white = np.full_like(panels[0], 255)
    across = min(_ACROSS, len(panels))
    full = [*panels, *[white] * (-len(panels) % across)]
    return np.vstack([np.hstack(full[i : i + across]) for i in range(0, len(full), across)])

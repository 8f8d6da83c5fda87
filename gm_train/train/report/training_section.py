"""The training of a run in its report: losses, speed, waiting and cost as numbers, and the curves behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gm_train.plan.devices import sheet_of_gpu
from gm_train.run.curves import Pixels, column, curves_of, draw_curve, png
from gm_train.run.starts import Cost, cost_of, on_gpus, start_of
from gm_train.train.report.page_parts import notes, picture, table

Row = dict[str, Any]


@dataclass(frozen=True)
class Records:
    """What a run has recorded.

    Attributes:
        rows: those of `metrics.jsonl`, at least one of a step.
        skipped: those of `skipped.jsonl`.
        starts: of the run, oldest first; may be empty.
        precision: `trainer.precision`.
    """

    rows: Sequence[Row]
    skipped: Sequence[Row]
    starts: Sequence[Row]
    precision: str

    @property
    def steps(self) -> list[Row]:
        """The rows of steps."""
        return [row for row in self.rows if "loss" in row]


def with_rates(records: Records) -> list[Row]:
    """Add to each row of a step what follows from its columns, as far as they are there.

    `loader_percent` is the share of the step that rank 0 waited for its loader, `gflops_per_s` are the model's
    operations in 10^9 a second over all ranks, and `mfu_percent` is the share of the GPUs' peak that this is.
    """
    rows = []
    for row in records.rows:
        more: Row = {}
        seconds = row.get("step_s")
        if seconds and "loader_s" in row:
            more["loader_percent"] = 100 * row["loader_s"] / seconds
        if seconds and row.get("flops") is not None:
            more["gflops_per_s"] = row["flops"] / seconds / 1e9
            start = start_of(records.starts, row["step"])
            if start is not None and (peak := _peak(start, records.precision)) is not None:
                more["mfu_percent"] = 100 * row["flops"] / seconds / (start["ranks"] * peak[0])
        rows.append(row | more)
    return rows


def _peak(start: Row, precision: str) -> tuple[float, str] | None:
    """The peak of each GPU of a start, in operations a second, and where it stands; None if it is not known."""
    sheet = sheet_of_gpu(start["gpus"][0]) if on_gpus(start) and start.get("gpus") else None
    return None if sheet is None else (sheet.flops[precision], sheet.source)


def training_section(records: Records) -> tuple[list[str], list[Pixels]]:
    """Format the training of a run.

    Returns:
        The parts of the section, and its panels.
    """
    rows = with_rates(records)
    restarts = [start["step"] for start in records.starts[1:]]
    bad = [row["step"] for row in records.skipped if row["event"] == "skipped"]
    curves = curves_of(rows)
    if any("mfu_percent" in row for row in rows):
        curves = [curve for curve in curves if curve.column != "gflops_per_s"]  # the same curve in another unit
    panels = [draw_curve(curve, rows, restarts, bad) for curve in curves]
    pictures = [
        picture(png(pixels), f"curve: {curve.title.lower()}") for pixels, curve in zip(panels, curves, strict=True)
    ]
    parts = [
        table("", [], _losses(records) + _speed(records, rows, len(bad))),
        f"<div class=panels>{''.join(pictures)}</div>",
        *notes(["Dashed lines mark the steps after which the run was started again."] if restarts else []),
    ]
    return parts, panels


def _losses(records: Records) -> list[list[str]]:
    at, losses = column(records.steps, "loss")
    last = f"{losses[-1]:.3f} nats at step {int(at[-1]):,}" if len(losses) else "no step was finite"
    lines = [["last training loss", last]]
    for key, name in (("l_lang", "language loss"), ("l_pathway", "pathway loss")):
        at, parts = column(records.steps, key)
        if len(parts) and parts.any():
            lines.append([f"its {name}", f"{parts[-1]:.3f} nats at step {int(at[-1]):,}"])
    at, losses = column(records.rows, "val_loss")
    if len(at):
        best = losses.argmin()
        lines.append(["last validation loss", f"{losses[-1]:.3f} nats at step {int(at[-1]):,}"])
        lines.append(["best validation loss", f"{losses[best]:.3f} nats at step {int(at[best]):,}"])
    return lines


def _speed(records: Records, rows: Sequence[Row], n_skipped: int) -> list[list[str]]:
    """Format speed, waiting, skipped steps, starts and cost."""
    steps = records.steps
    lines = [["throughput, median", f"{median(row['tokens_per_s'] for row in steps):,.0f} real tokens/s"]]
    lines += _operations(records, rows)
    timed = [row for row in steps if "loader_s" in row]
    if timed:
        share = sum(row["loader_s"] for row in timed) / sum(row["step_s"] for row in timed)
        lines.append(["waiting for the loader", f"{share:.1%} of the time of a step"])
    rollbacks = sum(row["event"] == "rollback" for row in records.skipped)
    lines.append(["skipped steps", f"{n_skipped} (rollbacks: {rollbacks})"])
    if restarts := [f"{start['step']:,}" for start in records.starts[1:]]:
        lines.append(["restarts", f"{len(restarts)}, after step {', '.join(restarts)}"])
    if (cost := cost_of(records.starts, records.rows)) is not None:
        lines.append(["cost", _in_words(cost)])
    return lines


def _operations(records: Records, rows: Sequence[Row]) -> list[list[str]]:
    """Format the rate of the model's operations, and its share of the peak; say which peak, or why there is none."""
    rates = column(rows, "gflops_per_s")[1]
    if not len(rates):
        why = "not recorded by the version that trained this run"
        if any("flops" in row for row in rows):
            why = "left out: the operations of this model are not known (it is frozen, or its mixer is not Mamba-2)"
        return [["MFU", why]]
    lines = [["model FLOP/s, median", f"{median(rates):,.4g} GFLOP/s over all ranks"]]
    shares = column(rows, "mfu_percent")[1]
    last = records.starts[-1] if records.starts else {}
    if len(shares):
        peaks = {peak for start in records.starts if (peak := _peak(start, records.precision)) is not None}
        of = " and ".join(f"{flops / 1e12:.4g} TFLOP/s a GPU ({source})" for flops, source in sorted(peaks))
        return [*lines, ["MFU, median", f"{median(shares):.1f} % of {of}, {records.precision}, dense"]]
    if not last:
        why = "left out: it is not recorded on what this run was trained"
    elif on_gpus(last):
        why = f"left out: the peak of {(last.get('gpus') or ['this GPU'])[0]} is not known here"
    else:
        why = "left out: the peak of a CPU stands on no data sheet; `gm-train bench model` measures it"
    return [*lines, ["MFU", why]]


def _in_words(cost: Cost) -> str:
    hours = [
        f"{_hours(value)} {unit}" for value, unit in ((cost.gpu_hours, "GPU-hours"), (cost.core_hours, "core-hours"))
        if value
    ]  # fmt: skip
    if not hours:
        return "none yet"
    return f"{' and '.join(hours)}, {cost.steps_share:.0%} of it in the steps recorded here"


def _hours(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"

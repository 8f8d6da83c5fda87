"""Plot throughput against cell length."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from gm_train.bench.model.contenders import GENEMAMBA, PUBLISHED, TRANSFORMER

DPI = 150
_COLOURS = {GENEMAMBA: "#c44e52", PUBLISHED: "#8c8c8c", TRANSFORMER: "#4c72b0"}


def draw_throughput(results: dict[str, Any], path: Path) -> None:
    """Draw a PNG: one line per contender (medians, quartiles), and the crossover of genemamba and transformer."""
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axis = figure.subplots()
    rows = [row for row in results["race"] if row.get("length") and "tokens_per_s" in row]
    ends: list[tuple[float, int, str]] = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = sorted((row for row in rows if row["contender"] == name), key=lambda row: row["length"])
        lengths = [row["length"] for row in own]
        colour = _COLOURS.get(name)
        low, high = zip(*(row["tokens_per_s_quartiles"] for row in own), strict=True)
        axis.fill_between(lengths, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(lengths, [row["tokens_per_s"] for row in own], "o-", color=colour, markersize=4.5, linewidth=1.6)
        ends.append((own[-1]["tokens_per_s"], lengths[-1], name))
    axis.set_ylim(bottom=0)
    # Write each line's name at its end, in its colour; shift names that would overlap.
    gap, lowest = 0.05 * axis.get_ylim()[1], -math.inf
    for height, length, name in sorted(ends):
        lowest = max(height, lowest + gap)
        axis.annotate(name, (length, lowest), (8, 0), textcoords="offset points",
                      color=_COLOURS.get(name), va="center", fontsize=9)  # fmt: skip
    meeting = results.get("crossover")
    if meeting and meeting["length"]:
        axis.axvline(meeting["length"], color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
        axis.annotate(f"crossover at {meeting['length']:,.0f}", (meeting["length"], 1.0), (0, 4),
                      xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", fontsize=8.5, color="#555555")  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({row["length"] for row in rows}))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * (right / left) ** 0.16)  # room for the names
    axis.set_xlabel("genes of a cell")
    axis.set_ylabel("real tokens per second, training step")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    made, ours = results["made"], results["models"][GENEMAMBA]
    sizes = ours["model"]
    where = made["device"] if made["device"] != "cpu" else f"{made['threads']} CPU threads"
    figure.suptitle(
        f"{sizes['n_layers']} x {sizes['d_model']}, {ours['parameters'] / 1e6:.1f} M parameters, "
        f"{made['precision']}, {where}",
        fontsize=10,
        x=0.02,
        ha="left",
    )
    figure.savefig(path, dpi=DPI)

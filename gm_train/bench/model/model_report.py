"""Render the results of `gm-train bench model` as Markdown."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from gm_train.bench.model.contenders import MATCH, TRANSFORMER
from gm_train.bench.tables import mebibytes, ratio, seconds, table, versions

Row = dict[str, Any]


def render_model(results: Row) -> str:
    """Render all sections that were run, each as a table."""
    parts = [_head(results)]
    for key, section in SECTIONS.items():
        if results.get(key):
            parts.append(section(results))
    parts.append("## Left out\n\n" + "\n".join(f"- {line}" for line in results["left_out"]))
    return "\n\n".join(parts) + "\n"


def _timed(row: Row) -> str:
    low, high = row["step_s_quartiles"]
    return f"{seconds(row['step_s'])} ({seconds(low)} … {seconds(high)})"


def _head(results: Row) -> str:
    made = results["made"]
    lines = [
        "# gm-train bench model",
        f"`{made['command']}`",
        f"{made['date']}, {made['cpu']}, {made['threads']} threads, device {made['device']}, {made['precision']}, "
        f"compile {'on, except for published' if made['compile'] else 'off'}; Python {made['python']}, "
        + versions(made["packages"], made["git"]),
        f"{made['steps']} timed steps per contender, in alternation, after {made['warmup']} untimed ones; "
        f"about {made['tokens_per_step']:,} tokens per step. Medians, with quartiles in brackets. A step consists of "
        "loss, gradient, clipping and AdamW.",
        "Cells: "
        + "; ".join(
            f"{'simulated, ' if store['simulated'] else ''}{store['name']}, {store['cells']:,} cells of "
            f"{store['mean_tokens']:,.0f} tokens on average, vocabulary {store['vocabulary']:,}"
            for store in results["stores"]
        )
        + ".",
    ]
    for name, model in results["models"].items():
        sizes, over = model["model"], model["over_genemamba"] - 1
        line = (
            f"- `{name}`: {sizes['n_layers']} x {sizes['d_model']}, {model['parameters']:,} parameters "
            f"({over:+.2%}), kernel {model['kernel']} ({model['why']})"
        )
        if name == TRANSFORMER and abs(over) > MATCH:
            line += f" — **not matched within {MATCH:.0%}**"
        lines.append(line)
    peaks = results["peaks"]["used"]
    lines.append(
        f"Measured peaks: {peaks['flops'] / 1e9:,.1f} GFLOP/s ({peaks['side']:,}² product, same dtype and threads), "
        f"{peaks['bandwidth'] / 1e9:,.1f} GB/s (triad)."
    )
    # No empty lines between the items of a list.
    text = lines[0]
    for before, line in pairwise(lines):
        text += ("\n" if before.startswith("- ") and line.startswith("- ") else "\n\n") + line
    return text


def _race(results: Row) -> str:
    rows = []
    for row in results["race"]:
        if row.get("out_of_memory"):
            rows.append([row["workload"], row["contender"], "out of memory", *["-"] * 6])
            continue
        rows.append(
            [
                row["workload"],
                row["contender"],
                f"{row['tokens_per_s']:,.0f}",
                f"{row['cells_per_s']:,.2f}",
                _timed(row),
                mebibytes(row["peak_memory"]),
                f"{row['flops_per_token'] / 1e6:,.1f}",
                f"{row['mfu']:.1%}",
                f"{row['shape']['tokens'] / row['shape']['slots']:.0%}",
            ]
        )
    header = [
        "cell length",
        "contender",
        "tokens/s",
        "cells/s",
        "step",
        "peak memory",
        "MFLOP/token",
        "MFU",
        "real tokens",
    ]
    text = "## Contenders\n\n" + table(header, rows)
    meeting = results.get("crossover")
    if meeting is None:
        return text
    first, last = meeting["ahead"]
    note = (
        f"genemamba and transformer are equally fast at {meeting['length']:,.0f} genes per cell (interpolated): "
        f"{first} is faster at the shortest length, {last} at the longest."
        if meeting["length"]
        else f"No crossover: {first} is faster at all lengths measured."
    )
    return f"{text}\n\n{note}"


def _layer(results: Row) -> str:
    base = {row["layer"].split(", ")[1]: row for row in results["layer"] if row["layer"].startswith("genemamba")}
    rows = []
    for row in results["layer"]:
        if row.get("out_of_memory"):
            rows.append([row["layer"], "out of memory", "-", "-"])
            continue
        ours = base[row["layer"].split(", ")[1]]
        over = row["step_s"] / ours["step_s"] if "step_s" in ours else None
        rows.append([row["layer"], _timed(row), mebibytes(row["peak_memory"]), ratio(over)])
    note = "The layer of transformers runs in plain PyTorch on a CPU, and on GPUs with mamba_ssm if that is installed."
    header = ["layer", "time", "peak memory", "time over ours at this chunk"]
    return f"## One layer, one direction, forward and backward\n\n{note}\n\n{table(header, rows)}"


def _ladder(results: Row) -> str:
    texts = ["## From published to ours, one change at a time"]
    for label, rungs in results["ladder"].items():
        rows = []
        for row in rungs:
            if row.get("out_of_memory"):
                rows.append([row["contender"], "out of memory", *["-"] * 4])
                continue
            rows.append(
                [
                    row["contender"],
                    f"{row['cells_per_s']:,.2f}",
                    _timed(row),
                    mebibytes(row["peak_memory"]),
                    ratio(row["over_previous"]),
                    ratio(row["over_published"]),
                ]
            )
        shape = next((row["shape"] for row in rungs if "shape" in row), None)
        heading = f"### {label[0].upper()}{label[1:]}"
        if shape:
            heading += (
                f"\n\nCells of {shape['tokens'] / shape['cells']:,.0f} tokens on average, "
                f"{shape['cells']:.1f} per step."
            )
        header = ["rung", "cells/s", "step", "peak memory", "over the rung before", "over published"]
        texts.append(heading + "\n\n" + table(header, rows))
    return "\n\n".join(texts)


def _kernels(results: Row) -> str:
    total = sum(row["median_s"] * row["count"] for row in results["kernels"])
    rows = [
        [
            row["name"],
            str(row["count"]),
            seconds(row["median_s"]),
            seconds(row["least_s"]),
            row["bound"],
            f"{row['fraction']:.0%}",
            f"{row['median_s'] * row['count'] / total:.0%}",
        ]
        for row in results["kernels"]
    ]
    header = [
        "kernel",
        "times a step",
        "forward and backward",
        "roofline",
        "bound by",
        "of the roofline",
        "of their sum",
    ]
    return f"## Kernels of genemamba, each alone\n\n{table(header, rows)}\n\nTheir sum: {seconds(total)} per step."


def _options(results: Row) -> str:
    rows = []
    for row in results["options"]:
        off, on = row["off"], row["on"]
        if off.get("out_of_memory") or on.get("out_of_memory"):
            rows.append(
                [
                    row["option"],
                    *("out of memory" if side.get("out_of_memory") else _timed(side) for side in (off, on)),
                    *["-"] * 3,
                ]
            )
            continue
        rows.append(
            [
                row["option"],
                _timed(off),
                _timed(on),
                ratio(off["step_s"] / on["step_s"]),
                mebibytes(off["peak_memory"]),
                mebibytes(on["peak_memory"]),
            ]
        )
    header = ["option", "step without", "step with", "speed-up", "memory without", "memory with"]
    return "## Options, on and off\n\n" + table(header, rows)


def _loss_memory(results: Row) -> str:
    first = results["loss_memory"][0]
    rows = [[row["way"], mebibytes(row["added"])] for row in results["loss_memory"]]
    return (
        "## Memory of output layer and loss\n\n"
        f"{first['tokens']:,} tokens, {first['targets']:,} of them predicted, width {first['d_model']}, vocabulary "
        f"{first['vocabulary']:,}; forward and backward, including gradients of weights and states.\n\n"
        + table(["way", "peak added"], rows)
    )


def _profile(results: Row) -> str:
    total = sum(results["profile"].values())
    rows = [[part, seconds(value), f"{value / total:.0%}"] for part, value in results["profile"].items()]
    return "## Profile of a step of genemamba\n\n" + table(["part", "time", "share"], rows)


#: Each section by the key of its results.
SECTIONS: dict[str, Callable[[Row], str]] = {
    "race": _race,
    "layer": _layer,
    "ladder": _ladder,
    "options": _options,
    "kernels": _kernels,
    "profile": _profile,
    "loss_memory": _loss_memory,
}


def crossover(rows: list[dict[str, Any]], ours: str, theirs: str) -> dict[str, Any] | None:
    """Find where the median throughputs of two contenders meet.

    Between measured lengths, throughput is assumed to be linear in the logarithm of the length, as the lines of the
    picture are.

    Args:
        rows: rows of the race; natural lengths and contenders that ran out of memory are skipped.
        ours: name of one contender.
        theirs: name of the other one.

    Returns:
        None unless both were measured at two lengths or more. Otherwise `length`, the interpolated crossing (the last
        one of several), or None if one contender is faster everywhere; and `ahead`, the faster contender at the
        shortest and at the longest length.
    """
    by_length: dict[int, dict[str, float]] = {}
    for row in rows:
        if row.get("length") and "tokens_per_s" in row:
            by_length.setdefault(row["length"], {})[row["contender"]] = row["tokens_per_s"]
    points = [
        (math.log(length), rates[ours] - rates[theirs])
        for length, rates in sorted(by_length.items())
        if ours in rates and theirs in rates
    ]
    if len(points) < 2:
        return None
    length = None
    for (x0, y0), (x1, y1) in pairwise(points):
        if (y0 < 0) != (y1 < 0):
            length = math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return {"length": length, "ahead": [ours if y >= 0 else theirs for _, y in (points[0], points[-1])]}

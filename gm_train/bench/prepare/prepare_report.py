"""Render the results of `gm-train bench prepare` as Markdown."""

from collections.abc import Callable
from typing import Any

from gm_train.bench.prepare.prepare_runners import LOADING, READING
from gm_train.bench.tables import mebibytes, ratio, seconds, table, versions

Row = dict[str, Any]

#: Assumptions of the extrapolation to a large corpus.
CORPUS, NODES, WORKERS_PER_NODE, GPUS_PER_NODE = 100_000_000, 32, 16, 8
#: Real tokens per second of one GPU: a target that has not been measured yet.
TOKENS_PER_GPU = 600_000
_LEAST_SHARE = 0.02
_METHODS = (("t-digests", "digests_s"), ("exact, by histograms", "exact_s"), ("reading once with h5py", "h5py_s"))


def render_prepare(results: Row) -> str:
    """Render all sections that were run."""
    parts = [_head(results["made"])]
    parts += [section(results[key]) for key, section in _SECTIONS.items() if key in results]
    left_out = [*results["left_out"], "Cold caches: all data were written or read just before."]
    parts.append("## Left out\n\n" + "\n".join(f"- {line}" for line in left_out))
    return "\n\n".join(parts) + "\n"


def _head(made: Row) -> str:
    return "\n\n".join(
        [
            "# gm-train bench prepare",
            f"`{made['command']}`",
            f"{made['date']}, {made['cpu']}, {made['cores']} cores; Python {made['python']}, "
            + versions(made["packages"], made["git"]),
            "Simulated cells with about 1,000 of 20,000 genes detected; "
            f"{made['cells']:,} cells unless a section says otherwise.",
        ]
    )


def _ranking(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        low, high = row["cells_per_s_quartiles"]
        rate = f"{row['cells_per_s']:,.0f} ({low:,.0f} … {high:,.0f})"
        lines.append([row["way"], rate, ratio(row["kernel_over"])])
    return (
        "## Ranking, one core\n\n"
        + table(["way", "cells/s", "the kernel over it"], lines)
        + "\n\nFrom counts to ranked genes, top-k 2,048; medians of 10 steps, in alternation, with quartiles."
    )


def _medians(timed: Row) -> str:
    functions: dict[str, float] = timed["functions"]
    total = sum(functions.values())
    shown = {name: own for name, own in functions.items() if own >= _LEAST_SHARE * total}
    shown["all others"] = total - sum(shown.values())
    lines = [[name, seconds(own), f"{own / total:.0%}"] for name, own in shown.items()]
    rates = ", ".join(
        f"{name} {seconds(timed[key])} ({timed['cells'] / timed[key]:,.0f} cells/s)" for name, key in _METHODS
    )
    return (
        f"## Medians, one worker: where the time goes\n\n{rates}.\n\n"
        + table(["function, its own time", "time", "share"], lines)
        + f"\n\nUnder a profiler ({seconds(total)} in all), which sees only the main thread. Another thread reads the "
        "files, so reading appears here only as waiting time. The time of fastdigest includes the conversion of "
        "numbers into its binary form."
    )


def _files(rows: list[Row]) -> str:
    lines = [
        [
            row["compression"],
            row["way"],
            f"{row['cells_per_s']:,.0f}",
            f"{seconds(row['seconds'])} ({seconds(min(row['all_s']))} … {seconds(max(row['all_s']))})",
            seconds(row["medians_s"]) if "medians_s" in row else "-",
            seconds(row["shards_s"]) if "shards_s" in row else "-",
            f"{row['of_reading']:.0%}",
            mebibytes(row["own_peak"]) if "own_peak" in row else "-",
            mebibytes(row["child_peak"]) if row.get("child_peak") else "-",
        ]
        for row in rows
    ]
    header = [
        "counts",
        "way",
        "cells/s",
        "both passes",
        "medians",
        "shards",
        "of the reading speed",
        "peak memory",
        "of a worker",
    ]
    sizes = {row["compression"]: row["bytes"] for row in rows}
    by_compression = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.items())
    return (
        f"## From .h5ad to finished shards\n\n{table(header, lines)}\n\nFiles: {by_compression}. Medians of the runs, "
        "with minimum and maximum. Each pass runs in a fresh process; its own imports are not timed, those of its "
        "workers are. Reading: data and indices, 4,096 cells at a time, twice, in one process."
    )


def _scale(rows: list[Row]) -> str:
    lines = [
        [
            f"{row['cells']:,}",
            row["step"],
            seconds(row["seconds"]),
            f"{row['cells_per_s']:,.0f}" if row["cells_per_s"] else "-",
            mebibytes(row["own_peak"]),
            mebibytes(row["child_peak"]) if row["child_peak"] else "-",
            f"{row['bytes'] / 1e6:,.0f} MB" if row["bytes"] else "-",
        ]
        for row in rows
    ]
    header = ["cells", "step", "wall time", "cells/s", "peak memory", "of a worker", "on disk"]
    return (
        f"## Scale\n\n{table(header, lines)}\n\n{both_passes(rows)} The counts are compressed with gzip, as CELLxGENE "
        "delivers them.\n\nEach step runs in a fresh process. Before its first batch the loader "
        "packs a pool for each of its lanes. In a cycle each lane uses up one pool. After one and a half untimed "
        "cycles, as many whole cycles are timed as hold the cells of the store, at least three.\n\n" + arithmetic(rows)
    )


def both_passes(rows: list[Row]) -> str:
    """Compare the speed of both passes with reading the counts twice, in one sentence."""
    taken: dict[int, Row] = {}
    for row in rows:
        taken.setdefault(row["cells"], {})[row["step"]] = row["seconds"]
    shares = [
        f"{steps[READING] / (steps['medians'] + steps['shards']):.0%}{' of the speed of reading' if not i else ''} at "
        f"{cells:,}{' cells' if not i else ''}"
        for i, (cells, steps) in enumerate(taken.items())
    ]
    return (
        f"Both passes, medians and shards, by {rows[0]['workers']} workers, run at {', '.join(shares)}; reading "
        "uses one process."
    )


def arithmetic(rows: list[Row]) -> str:
    """Extrapolate to 100 million cells on 32 nodes, from the largest atlas and its difference to the smallest."""
    by_size: dict[int, Row] = {}
    for row in rows:
        by_size.setdefault(row["cells"], {})[row["step"]] = row
    least, size = min(by_size), max(by_size)
    steps, fewest = by_size[size], by_size[least]
    if least == size:
        least, fewest = 0, {step: {"own_cpu_s": 0.0} for step in steps}
    medians, shards, loading = (steps[name] for name in ("medians", "shards", LOADING))
    workers = rows[0]["workers"]
    times = CORPUS / size * workers / (NODES * WORKERS_PER_NODE)

    def of_all(step: str) -> str:
        taken = f"{_hours(steps[step]['seconds'] * times)} of all workers"
        if workers == 1:  # the process itself does the work
            return taken
        alone = max(0.0, steps[step]["own_cpu_s"] - fewest[step]["own_cpu_s"]) * CORPUS / (size - least)
        return f"{taken}, in parallel with {_hours(alone)} of the main process"

    tokens = shards["tokens"] / size
    needed = TOKENS_PER_GPU / tokens
    delivered = loading["cells_per_s"]
    epoch_s = CORPUS / (NODES * GPUS_PER_NODE * needed)
    return "\n".join(
        [
            f"By arithmetic, {CORPUS:,} such cells on {NODES} nodes of {WORKERS_PER_NODE} workers, if each worker is "
            "as fast as here, the file system keeps up and everything scales:",
            "",
            f"- medians: {of_all('medians')}.",
            f"- tokens: {of_all('shards')}.",
            "- The main process spends its processor time (from the difference between the largest and the smallest "
            "atlas) mainly on putting parts into shards; more nodes do not shorten it. On one machine like this, "
            f"{workers} workers take {_hours(medians['seconds'] * CORPUS / size)} and "
            f"{_hours(shards['seconds'] * CORPUS / size)}.",
            f"- the store: {shards['bytes'] * CORPUS / size / 1e9:,.0f} GB.",
            f"- loading: a GPU that trains on {TOKENS_PER_GPU:,} tokens/s (a target, not a measurement) takes "
            f"{needed:,.0f} cells/s; one loader process delivered {delivered:,.0f}, {delivered / needed:,.0f} times as "
            f"many. {NODES * GPUS_PER_NODE} GPUs that train so fast read the corpus in {_hours(epoch_s)}.",
        ]
    )


def _hours(value: float) -> str:
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:,.0f} min" if value < 7200 else f"{value / 3600:,.1f} h"


_SECTIONS: dict[str, Callable[[Any], str]] = {
    "ranking": _ranking,
    "medians": _medians,
    "files": _files,
    "scale": _scale,
}

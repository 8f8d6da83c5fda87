"""Render the results of `gm-train bench loader` as Markdown."""

from typing import Any

from gm_train.bench.loader.loaders import BY_KERNEL, BY_ROWS, CEILING, COUNTS, OURS, WAYS
from gm_train.bench.loader.mixing_table import render_mixing
from gm_train.bench.loader.peers import BATCH
from gm_train.bench.tables import mebibytes, ratio, seconds, table, versions

Row = dict[str, Any]


def render_loader(results: Row) -> str:
    """Render all sections that were run."""
    parts = [_head(results)]
    if "race" in results:
        parts.append(_race(results["race"]))
    if "mixing" in results:
        parts.append(render_mixing(results["mixing"]))
    left_out = [*results["left_out"], *_ALWAYS]
    parts.append("## Left out\n\n" + "\n".join(f"- {line}" for line in left_out))
    return "\n\n".join(parts) + "\n"


_ALWAYS = (
    "Cold caches: all data were read before, and stay in memory if there is room.",
    "More than one process: each loader has one process, with the threads that it starts by itself.",
    "Masks, pathway genes and the copy to a device.",
)


def _head(results: Row) -> str:
    made, cells = results["made"], results["cells"]
    return "\n\n".join(
        [
            "# gm-train bench loader",
            f"`{made['command']}`",
            f"{made['date']}, {made['cpu']}, {made['cores']} cores; Python {made['python']}, "
            + versions(made["packages"], made["git"]),
            f"{cells['cells']:,} {'simulated ' if cells['simulated'] else ''}cells of {cells['mean_tokens']:,.0f} "
            f"tokens on average, top-k {cells['top_k']:,}. {made['turns']} turns per loader, in alternation, of "
            f"{made['turn_s']:g} s or more, after four untimed ones. "
            f"A turn of `{OURS}` is one or more whole cycles; in a cycle each of its lanes packs one pool: "
            f"{cells['of_a_cycle']:,.0f} cells. The first one and a half cycles are untimed. "
            "Rates: cells of all turns divided by their seconds, with the quartiles of single turns in brackets.",
        ]
    )


def _race(rows: list[Row]) -> str:
    by_loader: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_loader.setdefault(row["loader"], {})[row["way"]] = row
    ways = {COUNTS: "counts, cells/s", BY_ROWS: "ranked by numpy, cells/s", BY_KERNEL: "ranked by our kernel, cells/s"}
    header = ["loader"]
    for way in WAYS:
        header += [ways[way], "gm-train over it"]
    lines = []
    for loader, by_way in by_loader.items():
        line = [loader]
        for way in WAYS:
            line += [_rate(by_way[way]), ratio(by_way[way]["ours_over"])] if way in by_way else ["failed", "-"]
        measured = list(by_way.values())
        lines.append([*line, seconds(measured[0]["first_s"]), mebibytes(measured[-1]["peak_memory"])])
    ours = next(row for row in rows if row["loader"] == OURS)
    note = (
        f"`{OURS}` delivers packed int64 rows of tokens and segments in all three ways; its rows are "
        f"{ours['real_tokens']:.1%} full. `{CEILING}` is TensorStore alone, with 16 reads in flight. The others "
        f"deliver batches of {BATCH} cells in random order: as sparse counts; ranked a cell at a time by numpy's "
        "argsort, padded to top-k; or ranked by gm-train's own kernel, which they do not come with, and padded."
    )
    return (
        f"## Loaders\n\n{table([*header, 'to the first batch', 'peak memory'], lines)}\n\n{note} The time to the "
        "first batch includes the copy of the cells that some loaders make at their first start."
    )


def _rate(row: Row) -> str:
    low, high = row["cells_per_s_quartiles"]
    return f"{row['cells_per_s']:,.0f} ({low:,.0f} … {high:,.0f})"

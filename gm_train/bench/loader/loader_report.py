"""The results of `gm-train bench loader` as Markdown."""

from typing import Any

from gm_train.bench.loader.loaders import BY_KERNEL, BY_ROWS, CEILING, COUNTS, OURS, WAYS
from gm_train.bench.loader.mixing_table import render_mixing
from gm_train.bench.loader.peers import BATCH
from gm_train.bench.tables import mebibytes, ratio, seconds, table, versions

Row = dict[str, Any]


def render_loader(results: Row) -> str:
    """All sections that were run."""
    parts = [_head(results)]
    if "race" in results:
        parts.append(_race(results["race"]))
    if "mixing" in results:
        parts.append(render_mixing(results["mixing"]))
    left_out = [*results["left_out"], *_ALWAYS]
    parts.append("## Left out\n\n" + "\n".join(f"- {line}" for line in left_out))
    return "\n\n".join(parts) + "\n"


_ALWAYS = (
    "Cold caches: everything that is read has been read before, and stays in memory where there is room.",
    "More than one process: each loader has one, with the threads that it starts by itself.",
    "Masks, pathway genes and the way to a device.",
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
            f"tokens on average, top-k {cells['top_k']:,}. {made['turns']} turns a loader, of {made['turn_s']:g} s "
            "or more, in alternation, after four untimed ones. "
            f"A turn of `{OURS}` is a whole cycle (or several), in which each of its lanes packs one pool: "
            f"{cells['of_a_cycle']:,.0f} cells; a cycle and a half before them are untimed. "
            "Cells of all turns over their seconds, with the quartiles of the turns in brackets.",
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
    for loader, found in by_loader.items():
        line = [loader]
        for way in WAYS:
            line += [_rate(found[way]), ratio(found[way]["ours_over"])] if way in found else ["failed", "-"]
        measured = list(found.values())
        lines.append([*line, seconds(measured[0]["first_s"]), mebibytes(measured[-1]["peak_memory"])])
    ours = next(row for row in rows if row["loader"] == OURS)
    said = (
        f"`{OURS}` delivers packed int64 rows of tokens and segments in all three; its rows are "
        f"{ours['real_tokens']:.1%} full. `{CEILING}` is TensorStore alone, with 16 reads in flight. The others "
        f"deliver batches of {BATCH} cells in random order: as sparse counts; ranked a cell at a time by numpy's "
        "argsort, padded to top-k; or ranked by gm-train's own kernel, padded, which is more than they come with."
    )
    return (
        f"## Loaders\n\n{table([*header, 'to the first batch', 'peak memory'], lines)}\n\n{said} The time to a first "
        "batch has in it what a loader makes of the cells at its first start."
    )


def _rate(row: Row) -> str:
    low, high = row["cells_per_s_quartiles"]
    return f"{row['cells_per_s']:,.0f} ({low:,.0f} … {high:,.0f})"

"""Format a comparison as text and Markdown."""

from typing import Any

from gm_train.evaluation.figures import Columns, Row
from gm_train.evaluation.score_table import aligned

Block = tuple[str, list[str], list[list[str]]]


def blocks(results: dict[str, Any]) -> list[Block]:
    """Format every table of a comparison as its title, its headings and its rows."""
    tables = [_compute(results), *_settings(results)]
    for table in results["tables"]:
        headings = ["", *(heading for _, heading, *_ in table["columns"])]
        tables.append((table["title"], headings, [_score_line(row, table["columns"]) for row in table["rows"]]))
    return tables


def _compute(results: dict[str, Any]) -> Block:
    headings = ["", "group", "seed", "ranks", "steps", "scored", "cells", "tokens", "parameters", "hours", "rank-hours"]
    lines = []
    for group in results["groups"]:
        for run in group["runs"]:
            counts = [run[key] for key in ("steps", "scored_step", "cells", "tokens", "parameters")]
            hours = [f"{run[key]:.2f}" for key in ("hours", "rank_hours")]
            shown = ["-" if count is None else f"{count:,}" for count in counts]
            lines.append([run["name"], group["label"], str(run["seed"]), run["trained_on"] or "-", *shown, *hours])
    return "Runs, and what they cost", headings, lines


def _settings(results: dict[str, Any]) -> list[Block]:
    labels = [group["label"] for group in results["groups"]]
    lines = [[key, *map(str, values)] for key, values in results["settings"].items()]
    return [("Settings that differ", ["", *labels], lines)] if lines else []


def _score_line(row: Row, columns: Columns) -> list[str]:
    """Format a row of scores: of a group, of a difference, or of a control."""
    sign = "+" if row["kind"] == "difference" else ""
    line = [row["scored"] + (_runs_of(row) if row["kind"] == "group" else "")]
    for key, _, _, decimals, _ in columns:
        found = row[key]
        spread = "" if found["sd"] is None else f" ± {found['sd']:.{decimals}f}"
        line.append(f"{found['mean']:{sign}.{decimals}f}{spread} {found.get('outcome', '')}".rstrip())
    return line


def _runs_of(row: Row) -> str:
    """How many runs of a group were scored, if it has several."""
    if row["of"] == 1:
        return ""
    runs = f"{row['runs']} of {row['of']}" if row["runs"] < row["of"] else f"{row['of']}"
    return f", {'mean of ' if row['runs'] > 1 else ''}{runs} runs"


def verdicts(results: dict[str, Any]) -> list[str]:
    """A sentence for each difference in the main column of each task: better, worse or level."""
    sentences = []
    for table in results["tables"]:
        key = results["panels"][table["task"]]["column"]
        what, decimals = next(((w, d) for k, _, w, d, _ in table["columns"] if k == key), (None, 0))
        for row in table["rows"] if what else ():
            if row["kind"] != "difference":
                continue
            found, (label, base) = row[key], row["scored"].split(" - ")
            spread = "" if found["sd"] is None else f" ± {found['sd']:.{decimals}f}"
            verdict = {
                "better": f"{label} is better than {base}",
                "worse": f"{label} is worse than {base}",
                "level": f"{label} is level with {base}, within two standard deviations",
            }.get(found["outcome"], f"{label} against {base} is unknown, because no score has a spread")
            sentences.append(f"{what} on {table['ranks']} ranks: {verdict} ({found['mean']:+.{decimals}f}{spread}).")
    return sentences


def render_text(results: dict[str, Any]) -> str:
    """Format a comparison for a terminal: warnings first."""
    parts = [f"WARNING: {warning}" for warning in results["warnings"]]
    parts += [""] if parts else []
    for title, headings, lines in blocks(results):
        parts += [title, *aligned(headings, lines), ""]
    parts += [*results["notes"], "", *(f"- {verdict}" for verdict in verdicts(results))]
    return "\n".join(parts).rstrip() + "\n"


def render_markdown(results: dict[str, Any]) -> str:
    """Format a comparison as Markdown: warnings first."""
    parts = ["# Runs side by side", ""]
    for warning in results["warnings"]:
        parts += [f"> **Warning**: {warning}", ""]
    for title, headings, lines in blocks(results):
        parts += [f"### {title}", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
        parts += [f"| {' | '.join(line)} |" for line in lines] + [""]
    parts += [*(f"{note}\n" for note in results["notes"]), *(f"- {verdict}" for verdict in verdicts(results))]
    return "\n".join([*parts, "", "![losses and scores](compare.png)"]) + "\n"

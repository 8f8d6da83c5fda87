"""The evaluation's results as text and Markdown, controls beside every score, and what they say in words."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

RANKS = ("plain", "dithered")
MODEL, ORDER, BY_RANK, FREQUENCY = "model", "order control", "frequency by rank", "frequency"
RANDOM, PCA = "random weights", "PCA"
#: What must stand beside the model's own score.
MASKED_CONTROLS = (ORDER, BY_RANK, FREQUENCY, RANDOM)
PROBE_CONTROLS = (PCA, RANDOM)

#: Key in a row, heading, the same in words, decimals, and whether more is better.
MASKED_COLUMNS = (
    ("cross_entropy", "CE, nats", "Cross-entropy of hidden genes (nats)", 2, False),
    ("top1", "top-1 %", "Hidden gene named first (%)", 1, True),
    ("top10", "top-10 %", "Hidden gene among the first ten (%)", 1, True),
)
PROBE_COLUMNS = (
    ("linear_accuracy", "linear acc. %", "Accuracy of a linear probe (%)", 1, True),
    ("linear_macro_f1", "linear F1 %", "Macro-F1 of a linear probe (%)", 1, True),
    ("knn_accuracy", "kNN acc. %", "Accuracy of nearest neighbours (%)", 1, True),
    ("knn_macro_f1", "kNN F1 %", "Macro-F1 of nearest neighbours (%)", 1, True),
)
#: Nats by which the order control must differ from frequency for neighbours to tell anything.
NEXT_TO_NOTHING = 0.05

Row = dict[str, Any]
Column = tuple[str, str, str, int, bool]
Columns = Sequence[Column]


class Figure(TypedDict):
    """A mean over seeds and their sample standard deviation (None with one seed)."""

    mean: float
    sd: float | None


def figure(values: Sequence[float]) -> Figure:
    """Mean and standard deviation of one value per seed."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "sd": None}
    return {"mean": mean, "sd": math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))}


def check_controls(results: Row) -> None:
    """Refuse results in which the model's score stands without one of its controls.

    Raises:
        ValueError: names the table, the ranks and the controls that are missing.
    """
    for table, controls in (("masked", MASKED_CONTROLS), ("probes", PROBE_CONTROLS)):
        rows = results[table]
        for ranks in RANKS if rows or table == "masked" else ():
            missing = {MODEL, *controls} - {row["scored"] for row in rows if row["ranks"] == ranks}
            if missing:
                raise ValueError(f"{table} scores on {ranks} ranks stand without: {', '.join(sorted(missing))}")


def _gap(a: Figure, b: Figure, more_is_better: bool) -> int:
    """1 where a is better, -1 where b is, 0 within two standard deviations of the difference."""
    difference = (a["mean"] - b["mean"]) * (1 if more_is_better else -1)
    noise = 2 * math.hypot(a["sd"] or 0.0, b["sd"] or 0.0)
    return 0 if abs(difference) <= noise else (1 if difference > 0 else -1)


def _row(rows: list[Row], ranks: str, scored: str) -> Row:
    return next(row for row in rows if row["ranks"] == ranks and row["scored"] == scored)


def _against(rows: list[Row], ranks: str, controls: Sequence[str], column: Column) -> str:
    """One sentence: which controls the model beats by a column, and which beat it."""
    key, _, what, decimals, more = column
    model = _row(rows, ranks, MODEL)[key]
    outcomes: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for control in controls:
        value = _row(rows, ranks, control)[key]
        outcomes[_gap(model, value, more)].append(f"{control} ({value['mean']:.{decimals}f})")
    words = {1: "beats", 0: "is level with", -1: "loses to"}
    said = [f"{words[outcome]} {', '.join(names)}" for outcome, names in outcomes.items() if names]
    return f"{what} on {ranks} ranks: the model ({model['mean']:.{decimals}f}) {'; '.join(said)}."


def verdicts(results: Row) -> list[str]:
    """What the tables say: who wins where, and what that means for what the model knows."""
    rows, trained_on = results["masked"], results["model"]["trained_on"]
    said = []
    for ranks in RANKS:
        sentence = _against(rows, ranks, MASKED_CONTROLS, MASKED_COLUMNS[0])
        order, model, frequency = (_row(rows, ranks, name)["cross_entropy"] for name in (ORDER, MODEL, FREQUENCY))
        if abs(order["mean"] - frequency["mean"]) < NEXT_TO_NOTHING:
            sentence += " Neighbours tell next to nothing here: what a model has beyond frequency, it knows of cells"
            beyond = _gap(model, frequency, more_is_better=False) > 0
            sentence += "." if beyond else "; this one has nothing beyond it."
        elif _gap(model, order, more_is_better=False) > 0:
            sentence += " It knows more of cells than what neighbours tell."
        else:
            sentence += " Not beyond the order control: the score shows nothing that neighbours do not tell."
        if ranks != trained_on:
            sentence += f" It was trained on {trained_on} ranks: these are foreign to it."
        said.append(sentence)
    if results["probes"]:
        for column in (PROBE_COLUMNS[0], PROBE_COLUMNS[2]):
            said += [_against(results["probes"], ranks, PROBE_CONTROLS, column) for ranks in RANKS]
    return said


def _cells(rows: list[Row], columns: Columns) -> list[list[str]]:
    """The texts of a table, the best of each column marked with a star."""
    texts = []
    for row in rows:
        line = [row["scored"]]
        for key, _, _, decimals, more in columns:
            means = [other[key]["mean"] for other in rows]
            best = row[key]["mean"] == (max(means) if more else min(means))
            sd = row[key]["sd"]
            spread = f" ± {sd:.{decimals}f}" if sd is not None else ""
            line.append(f"{row[key]['mean']:.{decimals}f}{spread}{'*' if best else ' '}")
        texts.append(line)
    return texts


def blocks(results: Row) -> list[tuple[str, list[str], list[list[str]]]]:
    """Every table of the results: its title, its headings, its lines.

    Raises:
        ValueError: a control is missing.
    """
    check_controls(results)
    cells, label = results["cells"], results["label"]
    tables = []
    for key, columns in (("masked", MASKED_COLUMNS), ("probes", PROBE_COLUMNS)):
        for ranks in RANKS:
            rows = [row for row in results[key] if row["ranks"] == ranks]
            if not rows:
                continue
            if key == "masked":
                title = (
                    f"Hidden genes of {cells['held_out']:,} held-out cells, {ranks} ranks "
                    f"(mean ± sd, mask seeds: {results['mask_seeds']})"
                )
            else:
                title = (
                    f"{label['key']!r} of {label['held_out']:,} held-out cells from frozen embeddings, {ranks} ranks "
                    f"(mean ± sd, probe seeds: {results['probe_seeds']})"
                )
            if ranks == results["model"]["trained_on"]:
                title += ", as the model was trained"
            tables.append((title, ["", *(heading for _, heading, *_ in columns)], _cells(rows, columns)))
    return tables


def render_text(results: Row) -> str:
    """The tables and what they say, for a terminal."""
    parts = []
    for title, headings, lines in blocks(results):
        widths = [max(len(line[i]) for line in [headings, *lines]) for i in range(len(headings))]
        parts.append(title)
        for line in [headings, *lines]:
            right = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
            parts.append("  " + "  ".join([line[0].ljust(widths[0]), *right]).rstrip())
        parts.append("")
    parts += ["* best of its column", *results["notes"], "", *(f"- {said}" for said in verdicts(results))]
    return "\n".join(parts) + "\n"


def render_markdown(results: Row) -> str:
    """The same as Markdown."""
    parts = []
    for title, headings, lines in blocks(results):
        parts += [f"### {title}", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
        parts += [f"| {' | '.join(text.strip() for text in line)} |" for line in lines] + [""]
    parts += [r"\* best of its column", *results["notes"], "", *(f"- {said}" for said in verdicts(results))]
    return "\n".join(parts) + "\n"

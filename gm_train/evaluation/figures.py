"""Means over seeds, and the comparison of a model with its controls."""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

RANKS = ("plain", "dithered")
MODEL, ORDER, BY_RANK, FREQUENCY = "model", "order control", "frequency by rank", "frequency"
RANDOM, PCA, NEIGHBOURS, VARIABLE = "random weights", "PCA", "nearest neighbours", "variable genes"
BY_TYPE, BY_BATCH = "random by type", "random by batch"
COEXPRESSION, LEVEL = "co-expression", "expression level"
STATES, EMBEDDINGS, REGRESSION = "cosine of states", "cosine of embeddings", "ridge regression"

#: A row of a table: `ranks`, `scored` (the model or a control), and a `Figure` for each column.
Row = dict[str, Any]
#: Key in a row, heading, description for sentences, decimals, and whether more is better.
Column = tuple[str, str, str, int, bool]
Columns = Sequence[Column]


class Figure(TypedDict):
    """A mean over seeds and their sample standard deviation (None with one seed)."""

    mean: float
    sd: float | None


def figure(values: Sequence[float]) -> Figure:
    """Mean and standard deviation of the values, one per seed."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "sd": None}
    return {"mean": mean, "sd": math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))}


def figures(runs: Sequence[dict[str, float]]) -> Row:
    """The figure of each key over the runs, one run per seed."""
    return {key: figure([run[key] for run in runs]) for key in runs[0]}


def gap(a: Figure, b: Figure, more_is_better: bool) -> int:
    """Compare two figures: 1 if a is better, -1 if b is, 0 within two standard deviations of their difference.

    Args:
        a: a mean over seeds.
        b: another one, in the same unit.
        more_is_better: whether the larger mean wins.
    """
    difference = (a["mean"] - b["mean"]) * (1 if more_is_better else -1)
    noise = 2 * math.hypot(a["sd"] or 0.0, b["sd"] or 0.0)
    return 0 if abs(difference) <= noise else (1 if difference > 0 else -1)


def row_of(rows: Sequence[Row], ranks: str, scored: str) -> Row:
    """Find the row of the model or of one control.

    Args:
        rows: of one task.
        ranks: plain or dithered.
        scored: the model or a control.
    """
    return next(row for row in rows if row["ranks"] == ranks and row["scored"] == scored)


def split_of(results: Row) -> str:
    """Name the split that was scored, "validation" or "test"; earlier versions scored validation cells, unnamed."""
    return str(results["cells"].get("split", "validation"))


def compare(rows: Sequence[Row], ranks: str, controls: Sequence[str], column: Column) -> str:
    """Say in one sentence which controls the model beats, and which beat it.

    Args:
        rows: of one task.
        ranks: plain or dithered.
        controls: names of the controls.
        column: what is compared.
    """
    key, _, what, decimals, more = column
    model = row_of(rows, ranks, MODEL)[key]
    outcomes: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for control in controls:
        value = row_of(rows, ranks, control)[key]
        outcomes[gap(model, value, more)].append(f"{control} ({value['mean']:.{decimals}f})")
    words = {1: "beats", 0: "is level with", -1: "loses to"}
    parts = [f"{words[outcome]} {', '.join(names)}" for outcome, names in outcomes.items() if names]
    return f"{what} on {ranks} ranks: the model ({model['mean']:.{decimals}f}) {'; '.join(parts)}."

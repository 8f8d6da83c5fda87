"""Tables of an ablation: variants, their differences and the controls, over seeds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gm_train.ablation.seed_statistics import Scores, over_seeds, paired_difference
from gm_train.evaluation.figures import MODEL, RANKS, Column, Columns, Row
from gm_train.evaluation.task import EvaluationTask
from gm_train.evaluation.tasks import TASKS

VARIANT, DIFFERENCE, CONTROL = "variant", "difference", "control"
#: Columns of the summary besides the one that the picture of an evaluation shows.
_ALSO = {"probes": ("knn_accuracy",)}
#: What titles say of one evaluation that does not hold for several.
_OF_ONE = re.compile(r" \(mean ± sd[^()]*\)|, mean ± sd[^()]*(?=\))|\b[\d,]+ (?=(?:validation|test) cells)")


@dataclass(frozen=True)
class Scored:
    """The evaluations of an ablation.

    Attributes:
        of: variant to seed to the results of the evaluation (`eval.json`).
        held_out_ratio: as in `paired_difference`.
        compare: variant to the one that it is compared with; without an entry, that is the first one.
    """

    of: Mapping[str, Mapping[int, Row]]
    held_out_ratio: float
    compare: Mapping[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each variant with the one that it is compared with, if both were scored."""
        first = next(iter(self.of))
        pairs = [(variant, self.compare.get(variant, first)) for variant in self.of]
        return [(variant, base) for variant, base in pairs if base in self.of and base != variant]

    def all(self) -> Iterable[Row]:
        """All evaluations."""
        return (results for seeds in self.of.values() for results in seeds.values())

    def scores(self, variant: str, task: str, ranks: str, scored: str, column: str) -> Scores:
        """Seed to score, of the seeds that have it.

        Args:
            variant: its name.
            task: key of a task.
            ranks: plain or dithered.
            scored: the model or a control.
            column: key of a column.
        """
        return {
            seed: row[column]["mean"]
            for seed, results in self.of[variant].items()
            for row in results.get(task, [])
            if (row["ranks"], row["scored"]) == (ranks, scored) and column in row
        }


def score_tables(scored: Scored) -> list[Row]:
    """Every table of every task that was scored.

    Returns:
        Tables with `task`, `ranks`, `title`, `columns` and `rows`. A row has `kind`, `scored` (the name of a variant or
        a control, or a difference) and an entry for each column that it has: `mean` and `sd`, or a `Difference`.
    """
    tables = []
    for task in TASKS:
        for ranks in RANKS:
            for title, columns in _shapes(scored, task, ranks):
                rows = _rows(scored, task.key, ranks, columns, task.controls)
                shown = {"title": title, "columns": [list(column) for column in columns], "rows": rows}
                tables.append({"task": task.key, "ranks": ranks, **shown})
    return tables


def summary_tables(scored: Scored) -> list[Row]:
    """The main columns of all tasks in one table for each kind of ranks; entries are as in `score_tables`."""
    tables = []
    for ranks in RANKS:
        rows: dict[tuple[str, str], Row] = {}
        shown: list[list[Any]] = []
        for task in TASKS:
            for key, heading, what, decimals, more in main_columns(scored, task, ranks):
                column = (key, heading, what, decimals, more)
                name = f"{task.key}.{key}"
                shown.append([name, f"{task.key}: {heading}", what, decimals, more])
                for row in _rows(scored, task.key, ranks, [column], task.controls):
                    if key in row:
                        kept = rows.setdefault((row["kind"], row["scored"]), {k: row[k] for k in ("kind", "scored")})
                        kept[name] = row[key]
        order = [VARIANT, DIFFERENCE, CONTROL]
        found = sorted(rows.values(), key=lambda row: order.index(row["kind"]))
        if found:
            tables.append({"ranks": ranks, "title": f"Summary, {ranks} ranks", "columns": shown, "rows": found})
    return tables


def main_columns(scored: Scored, task: type[EvaluationTask], ranks: str) -> list[Column]:
    """The columns of a task that the summary shows; none if it was not scored."""
    rows = next((results[task.key] for results in scored.all() if results.get(task.key)), None)
    if rows is None:
        return []
    wanted = (task.chart_of(rows)[0], *_ALSO.get(task.key, ()))
    columns = {column[0]: column for _, shown in _shapes(scored, task, ranks) for column in shown}
    return [columns[key] for key in wanted if key in columns]


def _shapes(scored: Scored, task: type[EvaluationTask], ranks: str) -> list[tuple[str, list[Column]]]:
    """Title and columns of each table of a task: all columns that the table has in any evaluation."""
    merged: list[tuple[str, dict[str, Column]]] = []
    for results in scored.all():
        if not results.get(task.key):
            continue
        for number, (title, columns) in enumerate(task.tables(results, ranks)):
            if number == len(merged):
                merged.append((_OF_ONE.sub("", title), {}))
            _join(merged[number][1], columns)
    return [(title, list(columns.values())) for title, columns in merged]


def _join(known: dict[str, Column], columns: Columns) -> None:
    for key, heading, what, decimals, more in columns:
        earlier = known.get(key)
        if earlier is not None and earlier[1] != heading:
            # Another split has another number of types in a bin.
            heading = heading.split(" (")[0]
        known[key] = (key, heading, what, decimals, more)


def _rows(scored: Scored, task: str, ranks: str, columns: Columns, controls: Sequence[str]) -> list[Row]:
    rows = [
        _row(VARIANT, variant, {key: scored.scores(variant, task, ranks, MODEL, key) for key, *_ in columns})
        for variant in scored.of
    ]
    for variant, base in scored.pairs:
        differences: Row = {"kind": DIFFERENCE, "scored": f"{variant} - {base}"}
        for key, _, _, _, more in columns:
            of_variant, of_base = (scored.scores(name, task, ranks, MODEL, key) for name in (variant, base))
            if of_variant.keys() & of_base.keys():
                differences[key] = paired_difference(of_variant, of_base, more, scored.held_out_ratio)
        rows.append(differences)
    for control in controls:
        rows += _control_rows(scored, task, ranks, columns, control)
    return [row for row in rows if len(row) > 2]


def _row(kind: str, name: str, scores: Mapping[str, Scores]) -> Row:
    return {"kind": kind, "scored": name, **{key: over_seeds(found) for key, found in scores.items() if found}}


def _control_rows(scored: Scored, task: str, ranks: str, columns: Columns, control: str) -> list[Row]:
    """The rows of a control: one for all variants beside which it has the same scores, which most controls have."""
    distinct: list[tuple[list[str], dict[str, Scores]]] = []
    for variant in scored.of:
        scores = {key: scored.scores(variant, task, ranks, control, key) for key, *_ in columns}
        for variants, known in distinct:
            if known == scores:
                variants.append(variant)
                break
        else:
            distinct.append(([variant], scores))
    return [
        _row(CONTROL, control if len(distinct) == 1 else f"{control} ({', '.join(variants)})", scores)
        for variants, scores in distinct
    ]

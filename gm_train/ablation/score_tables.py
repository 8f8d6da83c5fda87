"""Tables of an ablation: variants with their differences to the first one, and the controls, over seeds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gm_train.ablation.seed_statistics import Scores, over_seeds, paired_difference
from gm_train.evaluation.figures import MODEL, PCA, RANKS, Column, Columns, Row
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
        of: variant to seed to the results of the evaluation (`eval.json`); the first variant is the base.
        held_out_ratio: as in `paired_difference`.
    """

    of: Mapping[str, Mapping[int, Row]]
    held_out_ratio: float

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
    base, *others = scored.of
    rows = [
        _row(VARIANT, variant, {key: scored.scores(variant, task, ranks, MODEL, key) for key, *_ in columns})
        for variant in scored.of
    ]
    for variant in others:
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


def verdicts(scored: Scored) -> list[str]:
    """Sentences on the main columns: each variant against the first one, and beside PCA or the best control."""
    sentences = []
    for task in TASKS:
        for ranks in RANKS:
            for key, _, what, decimals, more in main_columns(scored, task, ranks):
                parts = _against_base(scored, task, ranks, key, more, decimals)
                parts += _against_control(scored, task, ranks, key, more, decimals)
                if parts:
                    sentences.append(f"{what}, {ranks} ranks: {'; '.join(parts)}.")
    return sentences


def _against_base(
    scored: Scored, task: type[EvaluationTask], ranks: str, key: str, more: bool, decimals: int
) -> list[str]:
    base, *others = scored.of
    parts = []
    for variant in others:
        of_variant, of_base = (scored.scores(name, task.key, ranks, MODEL, key) for name in (variant, base))
        if of_variant.keys() & of_base.keys():
            parts.append(_words(f"{variant} - {base}", of_variant, of_base, more, scored.held_out_ratio, decimals))
    return parts


def _against_control(
    scored: Scored, task: type[EvaluationTask], ranks: str, key: str, more: bool, decimals: int
) -> list[str]:
    parts = []
    for variant in scored.of:
        found = {name: scored.scores(variant, task.key, ranks, name, key) for name in task.controls}
        known = {name: scores for name, scores in found.items() if scores}
        model = scored.scores(variant, task.key, ranks, MODEL, key)
        if not known or not model:
            continue
        best = max(known, key=lambda name: over_seeds(known[name])["mean"] * (1 if more else -1))
        name = PCA if PCA in known else best
        parts.append(_words(f"{variant} - {name}", model, known[name], more, scored.held_out_ratio, decimals))
    return parts


def _words(name: str, scores: Scores, base: Scores, more: bool, ratio: float, decimals: int) -> str:
    found = paired_difference(scores, base, more, ratio)
    return f"{name} {found['mean']:+.{decimals}f}{interval(found, decimals)} {found['outcome']}"


def interval(found: Mapping[str, Any], decimals: int) -> str:
    """The interval of a difference in brackets; empty with one seed."""
    if found["low"] is None:
        return ""
    return f" [{found['low']:+.{decimals}f}, {found['high']:+.{decimals}f}]"

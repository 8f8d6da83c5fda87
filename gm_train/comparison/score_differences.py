"""Scores of groups side by side, with differences to the first group and controls."""

import math
from collections.abc import Sequence

from gm_train.comparison.run_groups import RunGroup
from gm_train.evaluation.figures import MODEL, Columns, Figure, Row, figure, gap
from gm_train.evaluation.task import EvaluationTask

#: Words for a difference: better or worse by more than two of its standard deviations, or not.
OUTCOMES = {1: "better", 0: "level", -1: "worse"}
#: The word where no score has a spread.
UNKNOWN = "spread unknown"


def difference(value: Figure, base: Figure, more_is_better: bool) -> Row:
    """Compare the figure of a group with that of the first one.

    Args:
        value: of the group.
        base: of the first group.
        more_is_better: whether the larger mean wins.

    Returns:
        `mean`, value minus base; `sd`, the root of the sum of both variances, None if neither is known; and `outcome`:
        better, worse, level (within two standard deviations of the difference), or spread unknown.
    """
    known = [sd for sd in (value["sd"], base["sd"]) if sd is not None]
    return {
        "mean": value["mean"] - base["mean"],
        "sd": math.hypot(*known) if known else None,
        "outcome": OUTCOMES[gap(value, base, more_is_better)] if known else UNKNOWN,
    }


def group_figure(figures: Sequence[Figure]) -> Figure:
    """Of one run, its figure (spread over mask or probe seeds); of several, the mean of their means and its sd."""
    return figures[0] if len(figures) == 1 else figure([found["mean"] for found in figures])


def compare_scores(
    groups: Sequence[RunGroup],
    results: dict[str, list[Row]],
    task: type[EvaluationTask],
    ranks: str,
    columns: Columns,
) -> list[Row]:
    """Compare the scores in one table of a task.

    Args:
        groups: of runs.
        results: label of a group to the evaluations of its runs that can be compared; may be empty.
        task: the task.
        ranks: plain or dithered.
        columns: of the table.

    Returns:
        Rows with `kind` (group, difference or control), `scored` (a label, a difference of labels or the name of a
        control) and an entry for each column. Those of groups have `runs`, how many runs they are the mean of, and
        `of`, how many runs the group has. A control with the same figures for all groups has one row.
    """
    keys = [(key, more) for key, _, _, _, more in columns]

    def found(label: str, name: str) -> list[Row]:
        """The figures of each run of a group that has all columns."""
        return [
            {key: row[key] for key, _ in keys}
            for evaluation in results[label]
            for row in evaluation[task.key]
            if (row["ranks"], row["scored"]) == (ranks, name) and all(key in row for key, _ in keys)
        ]

    scored = {group.label: runs for group in groups if (runs := found(group.label, MODEL))}
    figures = {
        label: {key: group_figure([run[key] for run in runs]) for key, _ in keys} for label, runs in scored.items()
    }
    size = {group.label: len(group.runs) for group in groups}
    rows: list[Row] = [
        {"kind": "group", "scored": label, "runs": len(runs), "of": size[label], **figures[label]}
        for label, runs in scored.items()
    ]
    for label in list(scored)[1:]:
        base = next(iter(scored))
        changes = {key: difference(figures[label][key], figures[base][key], more) for key, more in keys}
        rows.append({"kind": "difference", "scored": f"{label} - {base}", **changes})
    for name in task.controls:
        rows += _control_rows({label: found(label, name) for label in scored}, name)
    return rows


def _control_rows(found: dict[str, list[Row]], name: str) -> list[Row]:
    """The rows of one control: one for all groups whose runs have the same figures, which most controls have."""
    distinct: list[tuple[list[str], Row]] = []
    for label, runs in found.items():
        if not runs:
            continue
        same = all(run == runs[0] for run in runs)
        figures = runs[0] if same else {key: group_figure([run[key] for run in runs]) for key in runs[0]}
        for labels, known in distinct:
            if known == figures:
                labels.append(label)
                break
        else:
            distinct.append(([label], figures))
    return [
        {
            "kind": "control",
            "scored": name if len(distinct) == 1 else f"{name} of {', '.join(labels)}",
            **figures,
        }
        for labels, figures in distinct
    ]

"""Compare runs: settings, compute, and scores with their controls; as text, Markdown, JSON and a picture."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import DataError, OptionError
from data_shards.files.atomic import replace_file
from gm_train.comparison.comparable import comparable, of_same_question
from gm_train.comparison.compared_run import read_run
from gm_train.comparison.comparison_picture import draw_comparison
from gm_train.comparison.comparison_table import render_markdown
from gm_train.comparison.run_groups import RunGroup, different_settings, group_runs
from gm_train.comparison.score_differences import compare_scores
from gm_train.evaluation.figures import RANKS, Columns, Row
from gm_train.evaluation.task import EvaluationTask
from gm_train.evaluation.tasks import TASKS

#: Groups whose tokens differ by more than this share were not trained with equal compute.
EQUAL = 0.05
#: What the title of an evaluation's table says about ±: in a comparison it may be over runs, as a note says.
_SPREAD = re.compile(r" \(mean ± sd[^()]*\)|, mean ± sd[^()]*(?=\))")


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_runs`.

    Attributes:
        results: everything in the tables, ready for JSON.
        groups: the runs.
    """

    results: dict[str, Any]
    groups: list[RunGroup]

    def write(self, directory: Path) -> list[Path]:
        """Write `compare.md`, `compare.png` and `compare.json` in place of those of an earlier comparison.

        Returns:
            Their paths.

        Raises:
            DataError: they cannot be written.
        """
        table, picture, content = (directory / f"compare.{ending}" for ending in ("md", "png", "json"))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # `compare.json` goes first and comes last: it must not stand beside pictures of other runs.
            content.unlink(missing_ok=True)
            replace_file(table, render_markdown(self.results))
            draw_comparison(self.results, self.groups, picture)
            replace_file(content, json.dumps(self.results, indent=1) + "\n")
        except OSError as error:
            raise DataError(f"{directory}: cannot be written ({error.strerror}): choose another --out") from error
        return [table, picture, content]


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Compare runs with the first one.

    Args:
        paths: run directories, at least two.

    Raises:
        OptionError: fewer than two runs are given, or one is given twice.
        DataError: a path is no run, or a file of a run is damaged.
    """
    if len(paths) < 2:
        raise OptionError(f"{', '.join(map(str, paths))}: one run cannot be compared: give two or more run directories")
    seen: dict[Path, Path] = {}
    for path in paths:
        if (first := seen.setdefault(path.resolve(), path)) is not path:
            raise OptionError(f"{path}: is the same run as {first}: give each run once")
    runs = [read_run(path) for path in paths]
    groups = group_runs(runs)
    kept, warnings = comparable(runs)
    tables, panels = [], {}
    for task in TASKS:
        asked, others = of_same_question(task, kept)
        warnings += others
        if asked:
            panels[task.key] = _panel(task, next(iter(asked.values())))
            tables += _tables(task, groups, asked)
    results: dict[str, Any] = {
        "groups": [
            {
                "label": group.label,
                "runs": [{"name": run.name, "seed": run.config.run.seed, **run.compute()} for run in group.runs],
            }
            for group in groups
        ],
        "settings": different_settings(groups),
        "tables": tables,
        "panels": panels,
        "warnings": warnings,
    }
    results["notes"] = _notes(results, groups)
    return Comparison(results, groups)


def _panel(task: type[EvaluationTask], scored: Row) -> Row:
    """The main column of a task, and how it is drawn."""
    column, title, unit, decimals = task.chart_of(scored[task.key])
    return {"column": column, "title": title.format(**scored), "unit": unit, "decimals": decimals}


def _tables(task: type[EvaluationTask], groups: Sequence[RunGroup], asked: dict[str, Row]) -> list[Row]:
    """Every table of a task that one of the evaluations has, with the rows of all groups.

    Args:
        task: the task.
        groups: of runs.
        asked: name of a run to its evaluation.
    """
    of_group = {group.label: [asked[run.name] for run in group.runs if run.name in asked] for group in groups}
    tables = []
    for ranks in RANKS:
        found: dict[tuple[str, ...], tuple[str, Columns]] = {}
        for evaluation in asked.values():
            for title, columns in task.tables(evaluation, ranks):
                found.setdefault(tuple(key for key, *_ in columns), (title, columns))
        for title, columns in found.values():
            rows = compare_scores(groups, of_group, task, ranks, columns)
            if rows:
                shown = {"title": _SPREAD.sub("", title), "columns": [list(column) for column in columns], "rows": rows}
                tables.append({"task": task.key, "ranks": ranks, **shown})
    return tables


def _notes(results: dict[str, Any], groups: Sequence[RunGroup]) -> list[str]:
    """What a reader must know about the numbers."""
    notes = []
    tokens = [sum(run["tokens"] for run in group["runs"]) / len(group["runs"]) for group in results["groups"]]
    if max(tokens) > (1 + EQUAL) * min(tokens):
        each = ", ".join(f"{group.label} {n:,.0f}" for group, n in zip(groups, tokens, strict=True))
        notes.append(f"Compute is not equal: tokens of a run are {each}.")
    if len({run["processor"] for group in results["groups"] for run in group["runs"]}) > 1:
        notes.append("Hours are of different processors.")
    for group in results["groups"]:
        revisions = list(dict.fromkeys(str(run["revision"] or "unknown") for run in group["runs"]))
        if len(revisions) > 1:
            notes.append(
                f"The runs of {group['label']} are of different git revisions ({', '.join(revisions)}): their spread "
                "may hold what the code has changed."
            )
    if len({run.question for group in groups for run in group.runs}) > 1:
        notes.append("Losses of different objectives answer different questions: do not compare their heights.")
    if results["tables"]:
        notes.append(
            "± of the mean of several runs is one standard deviation over these runs; of a single run, over the mask "
            "or probe seeds of its evaluation. A difference is level if it is within two of its standard deviations."
        )
        if any(row.get("runs") == 1 for table in results["tables"] for row in table["rows"]):
            notes.append(
                "The spread of a single run does not hold what another training seed would change: train with several "
                "values of run.seed and give all the runs."
            )
    else:
        notes.append("No scores can be compared: no run has an evaluation that names its cells.")
    return notes

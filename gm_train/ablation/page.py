"""The page of an ablation: `ablation.json`, `ablation.md` and `ablation.png`."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from gm_train.ablation.definition import Definition
from gm_train.ablation.page_picture import draw_ablation
from gm_train.ablation.run_ablation import AblationRun
from gm_train.ablation.run_facts import run_facts
from gm_train.ablation.score_tables import DIFFERENCE, Scored, score_tables, summary_tables
from gm_train.ablation.seed_statistics import interval
from gm_train.ablation.verdicts import verdicts
from gm_train.evaluation.figures import Row, figure
from gm_train.evaluation.score_table import aligned
from gm_train.run.provenance import git_revision, packages

#: Packages whose versions the page names.
_PACKAGES = ("torch", "numpy", "scikit-learn", "lightning")


def ablation_results(
    name: str, definition: Definition, runs: Sequence[AblationRun], command: Sequence[str]
) -> tuple[dict[str, Any], Scored]:
    """Collect what the page shows.

    Args:
        name: of the ablation.
        definition: the ablation.
        runs: all of them trained and scored.
        command: the words after `gm-train` that made the page.

    Returns:
        Everything in the tables, ready for JSON; and the scores by variant and seed, for the picture.

    Raises:
        DataError: a file of a run is damaged.
    """
    of: dict[str, dict[int, Row]] = {}
    facts = []
    for run in runs:
        path = run.record.evaluation / "eval.json"
        try:
            results = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: is damaged ({error}): remove it, and the same command makes it anew") from error
        of.setdefault(run.planned.variant, {})[run.planned.seed] = results
        facts.append(run_facts(run, results))
    ratio = figure([one["held_out_ratio"] for one in facts])["mean"] if definition.split.every_seed else 0.0
    scored = Scored(of, ratio, definition.compare)
    known = packages()
    versions = {"gm-train": git_revision() or known.get("gm-train"), **{key: known.get(key) for key in _PACKAGES}}
    return {
        "name": name,
        "question": definition.question.strip(),
        "command": shlex.join(["gm-train", *command]),
        "variants": {variant: definition.variants[variant] for variant in of},
        "base": definition.base,
        "runs": facts,
        "held_out_ratio": ratio,
        "summary": summary_tables(scored),
        "verdicts": verdicts(scored),
        "tables": score_tables(scored),
        "notes": _notes(definition, facts),
        "versions": versions,
    }, scored


def write_page(results: dict[str, Any], scored: Scored, out: Path) -> list[Path]:
    """Write the page in place of an earlier one; return its files.

    Raises:
        DataError: they cannot be written.
    """
    table, picture, content = (out / f"ablation.{ending}" for ending in ("md", "png", "json"))
    try:
        # `ablation.json` goes first and comes last: it must not stand beside a picture of other runs.
        content.unlink(missing_ok=True)
        replace_file(table, render_markdown(results))
        draw_ablation(results["question"], scored, picture)
        replace_file(content, json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}): choose another --out") from error
    return [table, picture, content]


def _notes(definition: Definition, facts: Sequence[Row]) -> list[str]:
    """What a reader must know about the numbers."""
    split, scoring = definition.split, definition.scoring
    seeds = sorted({one["seed"] for one in facts})
    drawn = (
        f"the order of the data, what is hidden, and which {'donors' if split.by == 'donor' else 'cells'} are held out"
    )
    varies = drawn if split.every_seed else "the order of the data and what is hidden; all seeds have the same split"
    cells = " or ".join(f"{n:,}" for n in sorted({one["test"] for one in facts}))
    notes = [
        f"Seeds {', '.join(map(str, seeds))}: a seed varies the initial weights, {varies}. ± is one standard deviation "
        "over seeds.",
        f"Scores are of {cells} test cells, split by {split.by}: no step and no choice of a checkpoint has "
        f"seen them. The last checkpoint is scored; each score is a mean over {scoring.mask_seeds} mask seeds, or over "
        "the seeds of its probes.",
        "Differences (one - the other) are paired by seed, with a 95 % t-interval in brackets. *Better* and "
        "*worse*: zero lies outside of it. *Not shown*: it does not, or there is one seed; that does not prove "
        "equality.",
    ]
    genes = " and the choice of the genes that vary most" if definition.store.variable_genes else ""
    notes.append(f"The medians of genes{genes} are of all cells, test cells too; they use no label.")
    if unscored := {task: one["variant"] for one in reversed(facts) for task in one["unscored"]}:
        said = ", ".join(f"{task} (such as of {variant})" for task, variant in sorted(unscored.items()))
        notes.append(f"Not scored in every run, as the `eval.md` of a run explains: {said}.")
    if split.every_seed:
        notes.append(
            "Seeds draw splits of the same cells, which overlap: the intervals are wider for that (Nadeau and Bengio, "
            "2003)."
        )
    if len({one["hash"] for one in facts if one["seed"] == seeds[0]}) > 1:
        notes.append(
            "Variants rank cells in other ways, so their test cells have other tokens: scores of genes (masked, "
            "missing) answer other questions and cannot be compared; scores of cell types can."
        )
    if len(languages := sorted({one["language"] for one in facts})) > 1:
        notes.append(
            f"Variants are trained on different objectives ({', '.join(languages)}). Scores of masked genes say little "
            "of those that were not trained on masked genes, and so do scores of missing genes: compare what "
            "embeddings tell."
        )
    if len({(one["processor"], one["threads"]) for one in facts}) > 1:
        notes.append("Seconds are of different processors or numbers of threads.")
    if len(revisions := {str(one["revision"]) for one in facts}) > 1:
        notes.append(
            f"The runs are of different git revisions ({', '.join(sorted(revisions))}): differences may hold what the "
            "code has changed. Remove runs to train them again."
        )
    return notes


def render_markdown(results: dict[str, Any]) -> str:
    """The page as Markdown."""
    parts = [f"# {results['name']}", "", results["question"], "", "![scores](ablation.png)", ""]
    for table in results["summary"]:
        parts += _markdown(*_block(table))
    parts += [f"{note}\n" for note in results["notes"]]
    parts += [*(f"- {verdict}" for verdict in results["verdicts"]), ""]
    parts += _markdown(*_compute(results["runs"]))
    parts += _markdown("Variants", ["", "settings"], [[k, _settings(v)] for k, v in results["variants"].items()])
    parts += [f"All variants: `{' '.join(results['base'])}`.", ""]
    for table in results["tables"]:
        parts += _markdown(*_block(table))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    return "\n".join([*parts, f"Made by `{results['command']}` with {versions}.", ""])


def render_text(results: dict[str, Any]) -> str:
    """The summary for a terminal."""
    parts = [results["question"], ""]
    for table in results["summary"]:
        title, headings, lines = _block(table)
        parts += [title, *aligned(headings, lines), ""]
    title, headings, lines = _compute(results["runs"])
    parts += [title, *aligned(headings, lines), ""]
    return "\n".join([*parts, *results["notes"], "", *(f"- {verdict}" for verdict in results["verdicts"])]) + "\n"


def _settings(words: Sequence[str]) -> str:
    return f"`{' '.join(words)}`" if words else "those of all variants"


def _block(table: Row) -> tuple[str, list[str], list[list[str]]]:
    """Title, headings and lines of a table of scores."""
    headings = ["", *(heading for _, heading, *_ in table["columns"])]
    lines = []
    for row in table["rows"]:
        line = [row["scored"]]
        for key, _, _, decimals, _ in table["columns"]:
            found = row.get(key)
            if found is None:
                line.append("-")
            elif row["kind"] == DIFFERENCE:
                line.append(f"{found['mean']:+.{decimals}f}{interval(found, decimals)} {found['outcome']}")
            else:
                spread = "" if found["sd"] is None else f" ± {found['sd']:.{decimals}f}"
                line.append(f"{found['mean']:.{decimals}f}{spread}")
        lines.append(line)
    return table["title"], headings, lines


def _compute(facts: Sequence[Row]) -> tuple[str, list[str], list[list[str]]]:
    """What a run of each variant has cost, as the mean over seeds."""
    headings = ["", "runs", "steps", "tokens", "cells", "parameters", "TFLOP", "seconds", "last loss"]
    lines = []
    for variant in dict.fromkeys(one["variant"] for one in facts):
        own = [one for one in facts if one["variant"] == variant]
        mean = {key: sum(one[key] for one in own) / len(own) for key in ("tokens", "cells", "seconds", "loss")}
        flops = [one["flops"] for one in own if one["flops"] is not None]
        counted = f"{sum(flops) / len(flops) / 1e12:.1f}" if flops else "-"
        counts = [f"{round(mean[key]):,}" for key in ("tokens", "cells")]
        rest = [f"{own[0]['parameters']:,}", counted, f"{mean['seconds']:.0f}"]
        lines.append([variant, str(len(own)), f"{own[0]['steps']:,}", *counts, *rest, f"{mean['loss']:.2f}"])
    return (
        "Compute of a run (mean over seeds; losses of different objectives answer different questions)",
        headings,
        lines,
    )


def _markdown(title: str, headings: list[str], lines: list[list[str]]) -> list[str]:
    parts = [f"### {title}", "", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    return [*parts, *(f"| {' | '.join(line)} |" for line in lines), ""]

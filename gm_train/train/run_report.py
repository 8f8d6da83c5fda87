"""Write `report.html`: the settings, the training and the evaluation of a run, in one file without links."""

import base64
import html
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from gm_train.checkpoint.find import list_checkpoints
from gm_train.config.load import config_from_file
from gm_train.config.schema import Config
from gm_train.evaluation import score_table
from gm_train.evaluation.figures import MODEL
from gm_train.run.curves import column, draw_curves
from gm_train.run.records import METRICS, SKIPPED, read_rows
from gm_train.train.panel_summary import summarize_panel

EVAL_DIR = "eval"
#: What `gm-train annotate` writes into a run, beside a picture of the same name.
ANNOTATION = "annotation.json"

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
p.sub { color: #666; margin-top: .2em; overflow-wrap: anywhere; }
img { max-width: 100%; }
div.maps { display: flex; flex-wrap: wrap; gap: 12px; align-items: start; } div.maps img { width: 510px; }
table { border-collapse: collapse; margin: .6em 0 1.4em; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3em 0; min-width: min(40em, 88vw); }
div.table { overflow-x: auto; }
th, td { padding: .2em .9em .2em 0; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
tr.model td { background: #fdf1ee; } td.best { font-weight: 700; }
ul.verdicts li { margin: .3em 0; } .notes { color: #555; font-size: .9em; }
p.older { background: #fff3d0; border-left: 4px solid #e0a800; padding: .6em 1em; }
div.panels { display: flex; flex-wrap: wrap; gap: .5em; }
div.panels img { flex: 1 1 300px; min-width: 0; max-width: 460px; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: .85em; }
"""


def write_report(run_dir: Path) -> Path:
    """Write `report.html` and `curves.png` into a run directory, from its records.

    Args:
        run_dir: holds `config.yaml` and `metrics.jsonl`, and `eval/` if the run was evaluated.

    Returns:
        The path of the page.

    Raises:
        DataError: the directory holds no run, or no step was recorded.
    """
    rows = read_rows(run_dir / METRICS)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        raise DataError(f"{run_dir}: no step in {METRICS} to report: train with `gm-train fit` first")
    config = config_from_file(run_dir / "config.yaml")
    skipped = read_rows(run_dir / SKIPPED)
    curves = run_dir / "curves.png"
    draw_curves(rows, skipped, curves)
    name = html.escape(run_dir.resolve().name)
    is_of_label, scored = config.task.name == "classify", (run_dir / EVAL_DIR / "eval.json").is_file()
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{name}: gm-train report</title><style>{_STYLE}</style></head><body>",
        f"<h1>{name}</h1>",
        f"<p class=sub>gm-train run, {steps[-1]['step']:,} steps, {steps[-1]['position']:,} cells trained</p>",
        "<h2>Configuration</h2>",
        _summary(config, run_dir),
        "<h2>Training</h2>",
        _training(rows, steps, skipped),
        _picture(curves, "training curves"),
        *_panel(run_dir, rows),
        *(_annotation(run_dir) if is_of_label else []),
        *(_evaluation(run_dir, steps[-1]["step"]) if scored or not is_of_label else []),
        "<h2>Configuration in full</h2>",
        f"<details><summary>config.yaml</summary><pre>{_escaped_file(run_dir / 'config.yaml')}</pre></details>",
        "</body></html>",
    ]
    page = run_dir / "report.html"
    replace_file(page, "\n".join(parts) + "\n")
    return page


def _table(caption: str, headings: list[str], lines: Iterable[list[str]]) -> str:
    """Format an HTML table; a star after a number makes it bold."""
    parts = ["<div class=table><table>"]
    if caption:
        parts.append(f"<caption>{html.escape(caption)}</caption>")
    if headings:
        parts.append("<tr>" + "".join(f"<th>{html.escape(text)}</th>" for text in headings) + "</tr>")
    for line in lines:
        columns = "".join(
            f"<td{' class=best' if text.endswith('*') else ''}>{html.escape(text.rstrip('* '))}</td>" for text in line
        )
        parts.append(f"<tr{' class=model' if line[0] == MODEL else ''}>{columns}</tr>")
    return "".join([*parts, "</table></div>"])


def _summary(config: Config, run_dir: Path) -> str:
    """Format the settings that differ from the defaults, and the machine of the last start."""
    defaults, lines = asdict(Config()), []
    for section, settings in asdict(config).items():
        lines += [
            [f"{section}.{key}", str(value), str(defaults[section][key])]
            for key, value in settings.items()
            if value != defaults[section][key]
        ]
    parts = [_table("Settings that differ from the defaults", ["setting", "value", "default"], lines)]
    environment = run_dir / "environment.json"
    if environment.is_file():
        start = json.loads(environment.read_text())["starts"][-1]
        hardware = ", ".join([str(start["processor"]), f"{start['cpus']} CPUs", *start["gpus"]])
        revision = (start["git"] or "unknown")[:12]
        last_start = f"Last start {start['time']} at step {start['step']:,}; {hardware}; revision {revision}"
        parts.append(f"<p class=notes>{html.escape(last_start)}</p>")
    return "".join(parts)


def _training(rows: list[dict[str, Any]], steps: list[dict[str, Any]], skipped: list[dict[str, Any]]) -> str:
    """Format the numbers behind the curves."""
    losses = column(steps, "loss")[1]
    lines = [["last training loss", f"{losses[-1]:.3f} nats" if len(losses) else "no step was finite"]]
    at, losses = column(rows, "val_loss")
    if len(at):
        best = losses.argmin()
        lines.append(["last validation loss", f"{losses[-1]:.3f} nats"])
        lines.append(["best validation loss", f"{losses[best]:.3f} nats at step {int(at[best]):,}"])
    speeds = column(steps, "tokens_per_s")[1]
    lines.append(["median throughput", f"{sorted(speeds)[len(speeds) // 2]:,.0f} real tokens/s"])
    timed = [row for row in steps if "loader_s" in row]
    if timed:
        share = sum(row["loader_s"] for row in timed) / sum(row["step_s"] for row in timed)
        lines.append(["waiting for the loader", f"{share:.1%} of the time of a step"])
    bad = sum(row["event"] == "skipped" for row in skipped)
    rollbacks = sum(row["event"] == "rollback" for row in skipped)
    lines.append(["skipped steps", f"{bad} (rollbacks: {rollbacks})"])
    return _table("", [], lines)


def _panel(run_dir: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Format what the run has learned by its panel; nothing if it has none."""
    summary = summarize_panel(run_dir, rows)
    if summary is None:
        return []
    pictures = "".join(_picture(path, path.stem.replace("-", " ")) for path in summary.pictures)
    return [
        "<h2>What is learned</h2>",
        f"<div class=panels>{pictures}</div>",
        _table(summary.caption, summary.headings, summary.lines),
        *(f"<p class=notes>{html.escape(note)}</p>" for note in summary.notes),
    ]


def _evaluation(run_dir: Path, last_step: int) -> list[str]:
    """Format verdicts, tables and pictures, and the checkpoint they are of; or the command that makes them."""
    directory = run_dir / EVAL_DIR
    path = directory / "eval.json"
    if not path.is_file():
        how = "Not evaluated yet: run <code>gm-train eval</code> on a checkpoint of this run."
        return ["<h2>Evaluation</h2>", f"<p>{how}</p>"]
    results = json.loads(path.read_text())
    checkpoint = results.get("checkpoint")
    at = f" at step {checkpoint['step']:,}" if checkpoint else ""
    parts = [f"<h2>Evaluation{at}</h2>"]
    if (why := _outdated(run_dir, checkpoint, last_step)) is not None:
        again = "<code>gm-train eval</code> on this run scores its newest checkpoint."
        parts.append(f"<p class=older><b>Not of the present model.</b> {html.escape(why)} {again}</p>")
    parts.append(f"<p class=notes>Scores of {html.escape(score_table.scored_checkpoint(results))}</p>")
    try:
        blocks = score_table.blocks(results)
    except (ValueError, KeyError) as error:
        why = f"They were made by another version of gm-train, which had other controls or columns ({error})."
        again = "<code>gm-train eval</code> scores the model again."
        return [*parts, f"<p class=older><b>These scores cannot be shown.</b> {html.escape(why)} {again}</p>"]
    verdicts = [f"<li>{html.escape(line)}</li>" for line in score_table.verdicts(results)]
    parts += ["<ul class=verdicts>", *verdicts, "</ul>"]
    parts.append(f"<p class=notes>Bold is best of the column. {html.escape(score_table.LEGEND)}</p>")
    parts += [_table(*block) for block in blocks]
    parts += [f"<p class=notes>{html.escape(note)}</p>" for note in results["notes"]]
    if checks := [f"<li>{html.escape(line)}</li>" for line in score_table.checks(results)]:
        parts += ["<h3>Checks</h3>", "<ul class=verdicts>", *checks, "</ul>"]
    pictures = sorted(directory.glob("eval-*.png"), key=lambda path: path.stem)
    maps = [path for path in pictures if path.stem.startswith("eval-embedding")]
    parts += [_picture(path, path.stem.replace("-", " ")) for path in pictures if path not in maps]
    return [*parts, "<div class=maps>", *(_picture(path, path.stem.replace("-", " ")) for path in maps), "</div>"]


def _annotation(run_dir: Path) -> list[str]:
    """Format the scores of a run that learns a label, beside its controls, or the command that makes them."""
    path = run_dir / ANNOTATION
    if not path.is_file():
        how = "Not scored: <code>gm-train annotate</code> scores what it has trained on test cells, beside controls."
        return ["<h2>Label</h2>", f"<p>{how}</p>"]
    results = json.loads(path.read_text())
    cells = results["cells"]
    caption = (
        f"{results['label']!r} of {cells['held_out']:,} {results['split']} cells (± over draws of the probes' cells)"
    )
    at = (
        f"Scores of the checkpoint of step {results['checkpoint']['step']:,}. The annotator has learned from "
        f"{cells['train']:,} training cells, the probes from {cells['probes_train']:,}."
    )
    scored = [found for found in list_checkpoints(run_dir / "checkpoints") if found.val_loss is not None]
    best = min(scored, key=lambda found: (found.val_loss, -found.step), default=None)
    older = []
    if best is None or best.step != results["checkpoint"]["step"]:
        now = "this run has no validated checkpoint" if best is None else f"step {best.step:,} is the best one now"
        why = f"<b>Not of the present model.</b> {now}; <code>gm-train annotate</code> again scores it."
        older = [f"<p class=older>{why}</p>"]
    return [
        "<h2>Label</h2>",
        *older,
        f"<p class=notes>{html.escape(at)}</p>",
        _table(caption, *score_table.label_table(results["scores"])),
        f"<p class=notes>{html.escape(results['unknown']['text'])}.</p>",
        _picture(path.with_suffix(".png"), "confusion matrix"),
    ]


def _outdated(run_dir: Path, checkpoint: dict[str, Any] | None, last_step: int) -> str | None:
    """Say why scores are not those of the run's newest checkpoint; None if they are.

    Args:
        run_dir: the run directory.
        checkpoint: the checkpoint that was scored; None if the evaluation does not name it.
        last_step: the last step that the run has recorded.
    """
    if checkpoint is None:
        return f"The evaluation does not name its checkpoint; this run stands at step {last_step:,}."
    step = checkpoint["step"]
    newest = next(reversed(list_checkpoints(run_dir / "checkpoints")), None)
    if step != (newest.step if newest else last_step):
        return f"These scores are of step {step:,}; this run stands at step {last_step:,}."
    if newest is not None and newest.hash != checkpoint["hash"]:
        return f"These scores are of another checkpoint of step {step:,} than the one that this run has now."
    return None


def _picture(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _escaped_file(path: Path) -> str:
    return html.escape(path.read_text())

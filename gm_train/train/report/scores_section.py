"""The scores of `gm-train eval` in a run's report, beside their controls; each names its step."""

import html
import json
from pathlib import Path
from typing import Any

from gm_train.checkpoint.find import list_checkpoints
from gm_train.evaluation import score_table
from gm_train.train.report.page_parts import items, notes, picture, table


def scores_section(run_dir: Path, directory: Path, last_step: int) -> list[str]:
    """Format verdicts, tables and pictures, and the checkpoint they are of; or the command that makes them.

    Args:
        run_dir: the run directory.
        directory: what `gm-train eval` has written into it.
        last_step: the last step that the run has recorded.
    """
    path = directory / "eval.json"
    if not path.is_file():
        how = "Not evaluated yet: run <code>gm-train eval</code> on a checkpoint of this run."
        return ["<h2>Evaluation</h2>", f"<p>{how}</p>"]
    results = json.loads(path.read_text())
    checkpoint = results.get("checkpoint")
    step = f"step {checkpoint['step']:,}" if checkpoint else "a step that is not recorded"
    parts = [f"<h2>Evaluation{f' at {step}' if checkpoint else ''}</h2>"]
    if (why := _outdated(run_dir, checkpoint, last_step)) is not None:
        again = "<code>gm-train eval</code> on this run scores its newest checkpoint."
        parts.append(f"<p class=older><b>Not of the present model.</b> {html.escape(why)} {again}</p>")
    parts += notes([f"Scores of {score_table.scored_checkpoint(results)}"])
    try:
        blocks = score_table.blocks(results)
    except (ValueError, KeyError) as error:
        why = f"They were made by another version of gm-train, which had other controls or columns ({error})."
        again = "<code>gm-train eval</code> scores the model again."
        return [*parts, f"<p class=older><b>These scores cannot be shown.</b> {html.escape(why)} {again}</p>"]
    parts.append(items(score_table.verdicts(results)))
    pictures = sorted(directory.glob("eval-*.png"), key=lambda path: path.stem)
    maps = [path for path in pictures if path.stem.startswith("eval-embedding")]
    parts += [_picture(path, step, False) for path in pictures if path not in maps]
    parts += notes([f"Bold is best of the column. {score_table.LEGEND}"])
    parts += [table(f"{title}; {step}", headings, lines) for title, headings, lines in blocks]
    parts += notes(results["notes"])
    if checks := score_table.checks(results):
        parts += ["<h3>Checks</h3>", items(checks)]
    return [*parts, "<div class=panels>", *(_picture(path, step, True) for path in maps), "</div>"]


def _picture(path: Path, step: str, as_drawn: bool) -> str:
    name = path.stem.replace("-", " ")
    return picture(path.read_bytes(), name, f"{name.removeprefix('eval ')}, {step}", as_drawn)


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

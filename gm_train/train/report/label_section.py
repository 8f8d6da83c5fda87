"""The scores of a run that learns a label in its report, beside their controls."""

import json
from pathlib import Path

from gm_train.checkpoint.find import list_checkpoints
from gm_train.evaluation import score_table
from gm_train.train.report.page_parts import notes, picture, table

#: What `gm-train annotate` writes into a run, beside a picture of the same name.
ANNOTATION = "annotation.json"


def label_section(run_dir: Path) -> list[str]:
    """Format the scores of an annotator beside its controls, or the command that makes them."""
    path = run_dir / ANNOTATION
    if not path.is_file():
        how = "Not scored: <code>gm-train annotate</code> scores what it has trained on test cells, beside controls."
        return ["<h2>Label</h2>", f"<p>{how}</p>"]
    results = json.loads(path.read_text())
    cells, step = results["cells"], results["checkpoint"]["step"]
    caption = (
        f"{results['label']!r} of {cells['held_out']:,} {results['split']} cells (± over draws of the probes' cells); "
        f"step {step:,}"
    )
    at = (
        f"Scores of the checkpoint of step {step:,}. The annotator has learned from "
        f"{cells['train']:,} training cells, the probes from {cells['probes_train']:,}."
    )
    scored = [found for found in list_checkpoints(run_dir / "checkpoints") if found.val_loss is not None]
    best = min(scored, key=lambda found: (found.val_loss, -found.step), default=None)
    older = []
    if best is None or best.step != step:
        now = "this run has no validated checkpoint" if best is None else f"step {best.step:,} is the best one now"
        why = f"<b>Not of the present model.</b> {now}; <code>gm-train annotate</code> again scores it."
        older = [f"<p class=older>{why}</p>"]
    return [
        f"<h2>Label at step {step:,}</h2>",
        *older,
        *notes([at]),
        table(caption, *score_table.label_table(results["scores"])),
        *notes([f"{results['unknown']['text']}."]),
        picture(path.with_suffix(".png").read_bytes(), "confusion matrix", f"confusion matrix, step {step:,}", True),
    ]

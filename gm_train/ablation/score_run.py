"""The process that scores a run on test cells: `python -m gm_train.ablation.score_run RUN REQUEST.json`.

It is a process of its own, so that its memory and threads are its own.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from data_shards.files.location import location_of
from data_shards.store.manifest import TEST
from gm_train.ablation.definition import Scoring
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.evaluation.cells import read_cells
from gm_train.evaluation.evaluate import evaluate
from gm_train.evaluation.score_table import render_markdown
from gm_train.evaluation.tasks import choose_tasks
from gm_train.ranks.launch_local import follow_parent


@dataclass(frozen=True)
class Request:
    """What is scored.

    Attributes:
        store: the store of the run, a path.
        files: its count files.
        scoring: tasks, label and so on.
    """

    store: str
    files: list[str]
    scoring: Scoring

    def content(self) -> dict[str, Any]:
        """The request as JSON."""
        return asdict(self)


def score_run(run: Path, request: Request) -> dict[str, Any]:
    """Score the newest checkpoint of a run on the test cells of its store.

    Args:
        run: the run directory.
        request: what is scored.

    Returns:
        The results of the evaluation, as in `eval.json`.

    Raises:
        DataError: there is no checkpoint or no test cell, or nothing can be scored.
    """
    checkpoint = open_checkpoint(run)
    model, tokenizer, config = load_model(checkpoint)
    scoring = request.scoring
    cells = read_cells(
        location_of(request.store),
        [Path(file) for file in request.files],
        tokenizer,
        scoring.label or None,
        scoring.max_cells,
        held_out_split=TEST,
        batch=scoring.batch or None,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return evaluate(
        model.to(device),
        config,
        cells,
        "dithered" if tokenizer.dither else "plain",
        scoring.mask_seeds,
        {"step": checkpoint.step, "path": str(checkpoint.path.resolve()), "hash": checkpoint.hash},
        chosen=choose_tasks(scoring.tasks),
        pathways_hash=json.loads((checkpoint.path / "identity.json").read_text())["pathways"],
    ).results


def main(run: Path, asked: Path) -> None:
    """Score a run and write `eval.json` and `eval.md` beside the request."""
    content = json.loads(asked.read_text())
    results = score_run(run, Request(content["store"], content["files"], Scoring(**content["scoring"])))
    replace_file(asked.with_name("eval.md"), render_markdown(results))
    # Last: it says that the run was scored.
    replace_file(asked.with_name("eval.json"), json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    follow_parent()
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except DataError as error:
        sys.exit(f"error: {error}")

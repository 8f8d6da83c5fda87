"""Run directories that were never trained: records and scores as a run and its evaluation write them."""

import json
from pathlib import Path
from typing import Any

from gm_train.config.load import load_config
from gm_train.evaluation.figures import RANKS, figure
from gm_train.evaluation.tasks import choose_tasks
from gm_train.run.records import METRICS, append_rows, write_config

#: Tokens of each step.
TOKENS = 100


def write_run(
    directory: Path,
    *words: str,
    steps: int = 4,
    starts: tuple[tuple[int, int], ...] = ((0, 1),),
    validated: bool = True,
) -> Path:
    """Write the records of a run; each step takes half an hour.

    Args:
        directory: of the run.
        words: settings, `key=value`.
        steps: number of steps.
        starts: step and ranks of each start.
        validated: whether every second step is validated.
    """
    directory.mkdir(parents=True)
    usual = ("data.store=cells.zarr", f"run.dir={directory}", "objective.language=masked")
    write_config(directory, load_config(*usual, *words))
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "position": 7 * step, "loss": 5.0 - step, "tokens": TOKENS, "step_s": 1800.0})
        if validated and step % 2 == 0:
            rows.append({"step": step, "position": 7 * step, "val_loss": 6.0 - step})
    append_rows(directory / METRICS, rows)
    machine = {"processor": "EPYC", "gpus": [], "git": "abc"}
    content = {"starts": [{"step": step, "ranks": ranks, **machine} for step, ranks in starts]}
    (directory / "environment.json").write_text(json.dumps(content))
    return directory


def write_scores(run: Path, model: float, step: int = 4, tasks: tuple[str, ...] = (), **facts: Any) -> dict[str, Any]:
    """Write the evaluation of a run: the model has about the same number in all columns, and so has each control.

    Args:
        run: its directory.
        model: the mean of the model's scores; their standard deviation is 1.
        step: of the checkpoint that was scored.
        tasks: keys of the scored tasks; empty for all.
        facts: entries of `cells` that differ from the usual ones, and `mask_seeds`.

    Returns:
        What was written.
    """
    seeds = facts.pop("mask_seeds", 3)
    chosen = [task for task in choose_tasks(()) if not tasks or task.key in tasks]
    cells = {"train": 60, "held_out": 20, "split": "validation", "genes": 90, "hash": "a" * 64, "label": "cell_type"}
    cells["other_store"] = False
    results: dict[str, Any] = {
        "tasks": {"asked": [task.key for task in chosen], "scored": [task.key for task in chosen]},
        "checkpoint": {"step": step, "path": str(run / "checkpoints" / f"step-{step:08d}"), "hash": "b" * 64},
        "model": {"trained_on": "plain", "parameters": 12_345, "language": "masked"},
        "cells": cells | facts,
        "label": {"key": "cell_type", "held_out": 20, "types": {}, "rare": []},
        "mask_seeds": seeds,
        "probe_seeds": 3,
        "missing_cells": {ranks: [20] for ranks in RANKS},
        "integration_of": {
            "label": "cell_type",
            "batch": "donor",
            "batches": 2,
            "types": 2,
            "cells": 20,
            "only_held_out": True,
            "seeds": 3,
        },
        "pairs_facts": {"seeds": 3, "sets": {}},
        "regulation_facts": {"seeds": 3, "pairs": 40, "regulators": 12, "file": "f" * 64},
        "robustness_facts": {"seeds": 3, "cells": 20},
        "notes": [],
    }
    for task in chosen:
        means = {"model": model, **{name: 10.0 + number for number, name in enumerate(task.controls)}}
        results[task.key] = [
            {"ranks": ranks, "scored": name, **{key: figure([mean - 1, mean, mean + 1]) for key, *_ in task.columns}}
            for ranks in RANKS
            for name, mean in means.items()
        ]
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / "eval.json").write_text(json.dumps(results))
    return results

"""The starts of a run: where training was started again, what made each step, and what the run has cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.files.kinds import CHECKPOINT, RUN, is_other

Row = dict[str, Any]
ENVIRONMENT = "environment.json"


def refuse_no_run(path: Path) -> None:
    """Refuse a path that is not a run directory.

    Raises:
        DataError: it does not exist, or is something else; the message says which path to give.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such run directory: give the run.dir of a `gm-train fit`")
    if (other := is_other(path, RUN)) is not None:
        where = f"{path.parent.parent}" if other.startswith(f"is {CHECKPOINT},") else "the run.dir of a `gm-train fit`"
        raise DataError(f"{path}: {other}: give {where}")


def read_starts(run_dir: Path) -> list[Row]:
    """The starts of a run, oldest first; none if no file records them.

    Raises:
        DataError: the file is damaged.
    """
    path = run_dir / ENVIRONMENT
    if not path.is_file():
        return []
    way_out = "remove it to go on without it"
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}): {way_out}") from error
    starts = content.get("starts") if isinstance(content, dict) else None
    if not isinstance(starts, list) or not all(
        isinstance(start, dict) and isinstance(start.get("step"), int) and isinstance(start.get("ranks"), int)
        for start in starts
    ):
        raise DataError(f"{path}: is damaged (its starts lack their steps or ranks): {way_out}")
    return starts


def start_of(starts: Sequence[Row], step: int) -> Row | None:
    """The start that made a step; None if no start was recorded."""
    return next((start for start in reversed(starts) if start["step"] < step), None)


def on_gpus(start: Row) -> bool:
    """Whether a start computed on GPUs."""
    # Earlier versions recorded only which GPUs the node had; they were used wherever there were any.
    return bool(start["device"] == "cuda" if "device" in start else start.get("gpus"))


@dataclass(frozen=True)
class Cost:
    """What a run has cost so far.

    Attributes:
        gpu_hours: hours of all GPUs, one for each rank.
        core_hours: hours of all cores of starts without GPUs, one for each thread of each rank.
        steps_share: share of it that was spent in the steps that are recorded, 0 to 1; the rest went into loading,
            compiling, validations, checkpoints, and steps that were lost and made again.
    """

    gpu_hours: float
    core_hours: float
    steps_share: float


def cost_of(starts: Sequence[Row], rows: Sequence[Row]) -> Cost | None:
    """Add up the time from each start to its last recorded row; None if their times are not recorded.

    Args:
        starts: of the run, as `read_starts` returns them.
        rows: those of `metrics.jsonl`.
    """
    if not starts or not all("time" in start for start in starts):
        return None
    hours = {True: 0.0, False: 0.0}
    in_steps = 0.0
    # A later start may begin at a lower step, when the newest checkpoint is damaged. All steps after that are its own.
    later_from = [*accumulate((start["step"] for start in reversed(starts)), min)][::-1]
    for number, start in enumerate(starts):
        end = later_from[number + 1] if number + 1 < len(starts) else None
        own = [row for row in rows if row["step"] > start["step"] and (end is None or row["step"] <= end)]
        begun = datetime.fromisoformat(start["time"]).timestamp()
        # Rows of steps that the next start made again are dropped, but when the last one was recorded is kept.
        ended = max([start.get("last_row", begun), *(row["time"] for row in own if "time" in row)])
        units = start["ranks"] * (1 if on_gpus(start) else start.get("threads", 1))
        hours[on_gpus(start)] += units * max(0.0, ended - begun) / 3600
        in_steps += units * sum(row.get("step_s", 0.0) for row in own) / 3600
    total = sum(hours.values())
    return Cost(hours[True], hours[False], min(1.0, in_steps / total) if total else 0.0)

"""Runs that score a panel while they train, and what they leave."""

import os
import signal
from pathlib import Path
from typing import Any

from gm_train.run.records import METRICS, read_rows
from tests.conftest import Atlas, tiny_words

#: Columns that time decides.
TIMED = ("tokens_per_s", "step_s", "loader_s", "panel_s", "time")


def panel_words(atlas: Atlas, run: Path, *more: str) -> list[str]:
    """Settings of a run of 12 steps that scores its panel after every third step."""
    own = ["evaluation.every_steps=3", "evaluation.label=cell_type", "checkpoint.keep_last=9"]
    return [*tiny_words(atlas.store, run), *own, *more]


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` without the columns that time decides."""
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_rows(run / METRICS)]


def without_panel(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of steps and validations."""
    return [row for row in rows if not is_of_panel(row)]


def is_of_panel(row: dict[str, Any]) -> bool:
    """Whether a row holds scores of the panel."""
    return any(key.startswith("panel_") for key in row)


def _at_panel(call: int, number: int) -> None:
    """Send a signal to this process in the middle of its `call`-th panel."""
    from gm_train.evaluation.panel.panel import Panel

    real, calls = Panel._score_missing, 0

    def signalled(self: Panel, guess: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return real(self, guess)

    Panel._score_missing = signalled  # type: ignore[method-assign]


def die_in_the_third_panel() -> None:
    """Kill this process in its third panel."""
    _at_panel(3, signal.SIGKILL)


def die_in_the_second_panel_of_rank_0() -> None:
    """Kill rank 0 in its second panel."""
    if os.environ["RANK"] == "0":
        _at_panel(2, signal.SIGKILL)


def ask_to_leave_in_the_third_panel() -> None:
    """Send SIGTERM to this process in its third panel."""
    _at_panel(3, signal.SIGTERM)

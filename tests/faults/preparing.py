"""`gm-train data shards` in processes of their own, which can be killed at any step that they take on disk."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_shards.ranked
from gm_train.cli import main
from tests.faults import runs

#: What changes a disk from Python; Path's methods and shutil call these.
STEPS = ("rename", "mkdir", "rmdir", "unlink", "fsync")


def count_steps(on_step: Callable[[int], None]) -> None:
    """Call `on_step` with the number of every step on disk, just before it is taken."""
    taken = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **more: Any) -> Any:
            nonlocal taken
            taken += 1
            on_step(taken)
            return real(*arguments, **more)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def _run(words: list[str], log: str, part_cells: int, die_at: int | None, user: int | None, steps: str | None) -> None:
    if user is not None:
        os.setuid(user)
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        data_shards.ranked.PART_CELLS = part_cells
        taken = 0

        def on_step(number: int) -> None:
            nonlocal taken
            taken = number
            if number == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        count_steps(on_step)
        code = main(["data", "shards", *words])
        file.flush()
        if steps is not None:
            Path(steps).write_text(str(taken))
    sys.stdout.flush()
    os._exit(code)


def start(
    words: list[str | Path],
    log: Path,
    part_cells: int = 16,
    die_at: int | None = None,
    user: int | None = None,
    steps: Path | None = None,
) -> Any:
    """Start `gm-train data shards`.

    `part_cells` are the cells of a part; `die_at` is the number of the step on disk before which the process is killed;
    `user` the user id that it runs under; `steps` takes the number of its steps.
    """
    arguments = (
        [str(word) for word in words],
        str(log),
        part_cells,
        die_at,
        user,
        None if steps is None else str(steps),
    )
    process = runs._CONTEXT.Process(target=_run, args=arguments)
    process.start()
    return process


def prepare(words: list[str | Path], log: Path, **more: Any) -> int:
    """`gm-train data shards` to its end; returns its exit code."""
    process = start(words, log, **more)
    process.join()
    return int(process.exitcode)

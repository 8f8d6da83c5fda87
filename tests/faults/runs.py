"""Real training processes that can be killed, started quickly from a server that has torch imported already."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from gm_train.rundir import METRICS, read_rows

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gm_train.cli", "gm_train.fit"])

# What must agree between a run that was interrupted and one that was not. Speed and time of day may differ.
EXACT = ("step", "position", "loss", "l_lang", "l_pathway", "grad_norm", "lr", "sample_hash", "val_loss")


def _die_at(name: str, call: int) -> None:
    """Make the process kill itself when it enters a function of the saving code for the `call`-th time."""
    import gm_train.checkpoint
    import gm_train.recorder

    module = gm_train.checkpoint if name in ("save", "_commit") else gm_train.recorder
    real, calls = getattr(module, name), 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, name, dying)


def _train(words: list[str], log: str, file_limit: int | None, die_at: tuple[str, int] | None) -> None:
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if die_at is not None:
            _die_at(*die_at)
        from gm_train.cli import main

        code = main(["fit", *words])
        file.flush()
    sys.stdout.flush()
    os._exit(code)


def start(words: list[str], log: Path, file_limit: int | None = None, die_at: tuple[str, int] | None = None) -> Any:
    """Start `gm-train fit` in a process of its own.

    `file_limit` is the largest file that it may write, in bytes; `die_at` a function of the saving code and the number
    of the call at which the process is killed.
    """
    process = _CONTEXT.Process(target=_train, args=(words, str(log), file_limit, die_at))
    process.start()
    return process


def train(words: list[str], log: Path, file_limit: int | None = None) -> int:
    """`gm-train fit` to its end; returns its exit code."""
    process = start(words, log, file_limit)
    process.join()
    return int(process.exitcode)


def history(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, reduced to what must be exact."""
    return [{key: row[key] for key in EXACT if key in row} for row in read_rows(run / METRICS)]

"""`gm-train data` in processes that can be killed, started quickly from a server that has its packages imported."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
# One server serves all tests of a session: with what those of training need too.
_CONTEXT.set_forkserver_preload(
    ["gm_train.cli", "gm_train.train.fit", "gm_train.strategies.zero", "data_shards.prepare.make_store"]
)


def _run(words: list[str], log: str, prepare: Callable[[], None] | None) -> None:
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        # Before it may become another user, who cannot read the packages; the server has them already, or another test
        # was first to start it.
        import_module("data_shards.prepare.make_store")
        from gm_train.cli.main import main

        if prepare is not None:
            prepare()
        code = main(["data", *words])
        file.flush()
    os._exit(code)


def start_data(words: list[Any], log: Path, prepare: Callable[[], None] | None = None) -> Any:
    """Start `gm-train data`; `prepare`, a function of a module, is called in the process first."""
    process = _CONTEXT.Process(target=_run, args=([str(word) for word in words], str(log), prepare))
    process.start()
    return process


def run_data(words: list[Any], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """`gm-train data` to its end; returns its exit code, below zero for the signal that killed it."""
    process = start_data(words, log, prepare)
    process.join()
    return int(process.exitcode)


def die_at_rename(number: int, before: bool) -> None:
    """Have this process kill itself before or after it gives the `number`-th output or part its name."""
    rename, calls = Path.rename, 0

    def dying(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == number and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = rename(path, target)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.rename = dying  # type: ignore[method-assign]


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

"""Run `gm-train data` in processes that can be killed, started quickly from a server that has imported its packages."""

import contextlib
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.training_runs import CONTEXT


def _run(words: list[str], log: str, prepare: Callable[[], None] | None) -> None:
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        # `prepare` may switch to a user who cannot read the packages, so import them first. Usually the server has
        # imported them already, unless another test started it with other modules.
        import_module("data_shards.prepare.make_store")
        from gm_train.cli.main import main

        if prepare is not None:
            prepare()
        code = main(["data", *words])
        file.flush()
    os._exit(code)


def start_data(words: list[Any], log: Path, prepare: Callable[[], None] | None = None) -> Any:
    """Start `gm-train data` in its own process and return the process.

    Args:
        words: arguments of `gm-train data`.
        log: file to which standard output and standard error are appended.
        prepare: function of a module that the process calls first.
    """
    process = CONTEXT.Process(target=_run, args=([str(word) for word in words], str(log), prepare))
    process.start()
    return process


def run_data(words: list[Any], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run `gm-train data` to its end.

    Args:
        words: arguments of `gm-train data`.
        log: file to which standard output and standard error are appended.
        prepare: function of a module that the process calls first.

    Returns:
        The exit code; minus the number of the signal if one killed the process.
    """
    process = start_data(words, log, prepare)
    process.join()
    return int(process.exitcode)


def die_at_rename(number: int, before: bool) -> None:
    """Make this process kill itself before or after the `number`-th rename of an output or part."""
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
    """Contents of all files in a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

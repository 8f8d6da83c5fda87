"""Real training processes that can be killed, started quickly from a server that has imported torch."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gm_train.ranks.launch_local import free_port
from gm_train.run.records import METRICS, read_rows

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.support.no_collector",
        "gm_train.cli.main",
        "gm_train.train.fit",
        "gm_train.model.loops.conv_loops",
        "gm_train.model.loops.norm_loops",
        "gm_train.model.loops.scan_loops",
        "gm_train.strategies.zero",
        "data_shards.prepare.make_store",
        "cluster.doctor.examine",
        "tests.support.preloaded",
    ]
)

# Fields that must agree between an interrupted and an uninterrupted run. Speed and time of day may differ.
EXACT = ("step", "position", "loss", "l_lang", "l_pathway", "grad_norm", "lr", "sample_hash", "val_loss")


def _die_at(name: str, call: int) -> None:
    """Make this process kill itself when it calls a function of the saving code for the `call`-th time."""
    from gm_train.checkpoint import save
    from gm_train.run import record_writer
    from gm_train.strategies import steps
    from gm_train.train import recorder

    homes = {"save_by_name": steps, "_commit": save, "sync_rows": record_writer}
    module = homes.get(name, recorder)
    real, calls = getattr(module, name), 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, name, dying)


def _train(
    words: list[str],
    log: str,
    file_limit: int | None,
    die_at: tuple[str, int] | None,
    env: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.update(env)
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if die_at is not None:
            _die_at(*die_at)
        if prepare is not None:
            prepare()
        if env:
            import torch

            torch.set_num_threads(1)  # the ranks of a test share few cores
        from gm_train.cli.main import main

        code = main(["fit", *words])
        file.flush()
    sys.stdout.flush()
    os._exit(code)


def start(
    words: list[str],
    log: Path,
    file_limit: int | None = None,
    die_at: tuple[str, int] | None = None,
    env: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Any:
    """Start `gm-train fit` in its own process and return the process.

    Args:
        words: arguments of `gm-train fit`.
        log: file to which standard output and standard error are appended.
        file_limit: largest file that the process may write, in bytes.
        die_at: name of a function of the saving code, and number (from 1) of the call that kills the process.
        env: further environment variables.
        prepare: function of a module that the process calls first.
    """
    process = CONTEXT.Process(target=_train, args=(words, str(log), file_limit, die_at, env or {}, prepare))
    process.start()
    return process


def train(words: list[str], log: Path, file_limit: int | None = None) -> int:
    """Run `gm-train fit` to its end.

    Args:
        words: arguments of `gm-train fit`.
        log: file to which standard output and standard error are appended.
        file_limit: largest file that the process may write, in bytes.

    Returns:
        The exit code.
    """
    process = start(words, log, file_limit)
    process.join()
    return int(process.exitcode)


@dataclass
class RankProcesses:
    """The ranks of one run, one process each, as a launcher starts them."""

    processes: list[Any] = field(default_factory=list)

    def alive(self) -> bool:
        """Whether all ranks are running."""
        return all(process.is_alive() for process in self.processes)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all if `rank` is None."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            os.kill(process.pid, number)

    def join(self, timeout: float = 900.0) -> list[int | None]:
        """Wait for all ranks and return their exit codes.

        As a launcher does, kill the remaining ranks half a minute after one has failed, or after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while any(process.exitcode is None for process in self.processes):
            time.sleep(0.02)
            if any(process.exitcode not in (None, 0, 85) for process in self.processes):
                deadline = min(deadline, time.monotonic() + 30)
            if time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
        return [process.exitcode for process in self.processes]


def start_ranks(
    words: list[str],
    n_ranks: int,
    log: Path,
    prepare: Callable[[], None] | None = None,
    die_at: dict[int, tuple[str, int]] | None = None,
    env: dict[str, str] | None = None,
) -> RankProcesses:
    """Start `gm-train fit` as the ranks of one run.

    Args:
        words: arguments of `gm-train fit`.
        n_ranks: number of ranks.
        log: file to which standard output and standard error of all ranks are appended.
        prepare: function of a module that each process calls first.
        die_at: `die_at` of `start`, for each rank that is to be killed in a save.
        env: further environment variables.
    """
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
    }
    processes = []
    for rank in range(n_ranks):
        own = common | (env or {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(start(words, log, die_at=(die_at or {}).get(rank), env=own, prepare=prepare))
    return RankProcesses(processes)


def train_ranks(
    words: list[str],
    n_ranks: int,
    log: Path,
    prepare: Callable[[], None] | None = None,
    env: dict[str, str] | None = None,
) -> list[Any]:
    """Run `gm-train fit` on several ranks to its end.

    Args:
        words: arguments of `gm-train fit`.
        n_ranks: number of ranks.
        log: file to which standard output and standard error of all ranks are appended.
        prepare: function of a module that each process calls first.
        env: further environment variables.

    Returns:
        The exit code of each rank.
    """
    return start_ranks(words, n_ranks, log, prepare, env=env).join()


def history(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, reduced to the fields in `EXACT`."""
    return [{key: row[key] for key in EXACT if key in row} for row in read_rows(run / METRICS)]


def assert_close(ours: Path, theirs: Path, tolerance: float = 1e-5) -> None:
    """Assert that two runs made the same steps on the same samples, with losses that differ only by rounding.

    Args:
        ours: a run directory.
        theirs: the other run directory.
        tolerance: largest absolute difference of losses and gradient norms.
    """
    a, b = history(ours), history(theirs)
    same = ("step", "position", "sample_hash", "lr")
    assert [[row.get(key) for key in same] for row in a] == [[row.get(key) for key in same] for row in b]
    for key in ("loss", "l_lang", "l_pathway", "grad_norm", "val_loss"):
        worst = max(abs(x[key] - y[key]) for x, y in zip(a, b, strict=True) if key in x)
        assert worst <= tolerance, f"{key} differs by {worst}"

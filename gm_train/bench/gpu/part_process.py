"""Run one part in a process group of its own, which is killed at a time limit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LAST_LINES = 30


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        state: "done", "failed" or "stopped" (at its limit).
        seconds: wall-clock time.
        tail: the last lines of its output, unless it is done.
    """

    state: str
    seconds: float
    tail: str = ""


def run_limited(command: Sequence[str], log: Path, limit_s: float, environment: dict[str, str]) -> Ended:
    """Run a command and wait for it, at most until its limit; then kill it with all processes that it has started.

    Args:
        command: what to run.
        log: file for its output.
        limit_s: seconds that it may take.
        environment: variables of the process.
    """
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
            state = "failed" if code else "done"
        except subprocess.TimeoutExpired:
            code, state = 0, "stopped"
        finally:
            # Also if this process is interrupted, and for what a process that has ended left running.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - started
    if state == "done":
        return Ended(state, seconds)
    tail = _tail(log)
    if code < 0:
        tail = f"{tail}\nkilled by {signal.Signals(-code).name}".strip()
    return Ended(state, seconds, tail)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").replace("\r", "\n").rstrip().splitlines()
    return "\n".join(lines[-_LAST_LINES:])


def part_command(name: str, out: Path, device: str) -> list[str]:
    """Return the command that runs one part; it writes `parts/NAME.json` as its results become known."""
    return [sys.executable, "-m", "gm_train.bench.gpu.run_part", name, str(out), device]


def part_environment(device: str) -> dict[str, str]:
    """Return the variables of a part's process: on a CPU no GPU is visible, so that a rehearsal never uses one."""
    environment = dict(os.environ)
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment

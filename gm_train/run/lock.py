"""The lock of a run directory: only one start of a run may write it at a time.

The holder locks the file `.lock`, and writes into it which process it is. On a node that SLURM has lost, a process can
outlive its job. The next start of that job takes over: it replaces `.lock` by a new file. The old process reads `.lock`
before each writing of records and each commit, finds another process in it, and stops.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from data_shards.files.kinds import CHECKPOINT, CORPUS, COUNTS, MEDIANS, STORE, kind_of

log = logging.getLogger(__name__)

#: Holds `<job>.<restart>` once all ranks of that start have agreed to leave and their checkpoint is committed. The
#: batch script requeues the job by it, because exit codes of ranks that end one after another are not reliable.
MARKER = ".preempted"
_LOCK = ".lock"


@dataclass(frozen=True)
class Start:
    """One start of a run: its process and its SLURM job.

    Attributes:
        host, pid: the process of rank 0.
        job: number of the SLURM job; None outside of a job.
        restart: how often the job was requeued before.
        token: a random name, because numbers of processes and jobs are used again.
    """

    host: str
    pid: int
    job: str | None
    restart: int
    token: str

    @classmethod
    def this(cls) -> "Start":
        """Describe this process, with a new token."""
        env = os.environ
        restart = int(env.get("SLURM_RESTART_COUNT") or 0)
        return cls(socket.gethostname(), os.getpid(), env.get("SLURM_JOB_ID"), restart, uuid.uuid4().hex)

    def follows(self, other: "Start") -> bool:
        """Whether this is a later start of the same job."""
        return self.job is not None and self.job == other.job and self.restart > other.restart

    def __str__(self) -> str:
        job = "" if self.job is None else f", job {self.job}, restart {self.restart}"
        return f"process {self.pid} on {self.host}{job}"


class RunLock:
    """The right to write a run directory, for as long as `check` does not raise."""

    def __init__(self, path: Path, start: Start) -> None:
        self._path, self._start = path, start

    def holder(self) -> Start | None:
        """Return the start that `.lock` names; None if the file is missing or not readable.

        The file is opened and read each time, because NFS then shows its present content; attributes may be outdated.
        """
        try:
            return _read(self._path.read_text())
        except OSError:
            return None

    def holds(self) -> bool:
        """Whether this start still holds the lock."""
        return self.holder() == self._start

    def check(self) -> None:
        """Raise DataError if another start has taken over."""
        if not self.holds():
            raise DataError(
                f"{self._path.parent}: another start of this run has taken over "
                f"({self.holder() or 'the lock file does not name it'}); this process writes nothing more"
            )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[RunLock]:
    """Lock a run directory for this process during the block. The directory is created if it does not exist.

    Raises:
        DataError: another process trains into the directory, or it cannot be written.
    """
    path = directory / _LOCK
    if (kind := kind_of(directory)) in (STORE, MEDIANS, COUNTS, CHECKPOINT, CORPUS):
        raise DataError(f"run.dir={directory}: is {kind}: choose another folder for the run")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise DataError(f"run.dir={directory}: cannot be written ({error.strerror}): choose another run.dir") from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        this = Start.this()
        try:
            if not _lock(file, path):
                holder = _read(path.read_text())
                if holder is None or not this.follows(holder):
                    raise _in_use(directory, holder)
                log.warning("%s: %s still holds the lock; this start takes over", directory, holder)
                path.unlink()
                file = stack.enter_context(path.open("a+"))
                if not _lock(file, path):
                    raise _in_use(directory, _read(path.read_text()))
            file.truncate(0)
            # os.write, because a buffered write that failed would be tried again when the file is closed.
            os.write(file.fileno(), (json.dumps(this.__dict__) + "\n").encode())
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}): free space, then start again") from error
        lock = RunLock(path, this)
        # Another start may have replaced the file after it was opened and before it was locked.
        lock.check()
        yield lock


def _in_use(directory: Path, holder: Start | None) -> DataError:
    return DataError(
        f"run.dir={directory}: another process is training into it ({holder or 'the lock file does not name it'}); "
        "wait for it or choose another run.dir"
    )


def _lock(file: TextIOWrapper, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: this file system cannot lock (%s): start this run only once", path.parent, error.strerror)
    return True


def _read(text: str) -> Start | None:
    try:
        content: dict[str, Any] = json.loads(text)
        return Start(**content)
    except (ValueError, TypeError):
        return None


def mark_preempted(directory: Path, lock: RunLock | None) -> None:
    """Write `MARKER`: it tells the batch script that this start was asked to leave and has saved its state.

    Raises:
        DataError: the disk is full or cannot be written, or another start has taken over.
    """
    if lock is not None:
        lock.check()
    start = Start.this()
    try:
        replace_file(directory / MARKER, f"{start.job}.{start.restart}\n")
    except OSError as error:
        raise DataError(
            f"{directory / MARKER}: cannot be written ({error.strerror}); the checkpoint is saved"
        ) from error

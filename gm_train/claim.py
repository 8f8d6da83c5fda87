"""Who may write a run directory: one start of a run at a time.

The holder keeps a lock on `.lock`. A process can outlive its job, on a node that SLURM has lost: the job's next start
takes over by putting a new file in the place of the lock, and the process that was left behind finds, before it writes
again, that the file is not its own.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from data_shards.errors import DataError

log = logging.getLogger(__name__)

#: Holds `<job>.<restart>` once all ranks of that start have agreed to leave and their checkpoint is committed. The
#: batch script requeues by it: exit codes of ranks that end one after another are not to be trusted.
MARKER = ".preempted"
_LOCK = ".lock"


@dataclass(frozen=True)
class Start:
    """One start of a run: where it is, and which job's.

    Attributes:
        host, pid: the process of rank 0.
        job: number of the SLURM job, None outside of one.
        restart: how often the job was requeued before.
    """

    host: str
    pid: int
    job: str | None
    restart: int

    @classmethod
    def this(cls) -> "Start":
        env = os.environ
        return cls(socket.gethostname(), os.getpid(), env.get("SLURM_JOB_ID"), int(env.get("SLURM_RESTART_COUNT") or 0))

    def follows(self, other: "Start") -> bool:
        """Whether this is a later start of the same job."""
        return self.job is not None and self.job == other.job and self.restart > other.restart

    def __str__(self) -> str:
        job = "" if self.job is None else f", job {self.job}, restart {self.restart}"
        return f"process {self.pid} on {self.host}{job}"


class Claim:
    """The right to write a run directory, for as long as `check` does not raise."""

    def __init__(self, path: Path, file: TextIOWrapper) -> None:
        self._path, self._inode = path, os.fstat(file.fileno()).st_ino

    def check(self) -> None:
        """Raise DataError if a later start of the same job has taken over."""
        try:
            own = os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            own = False
        if not own:
            raise DataError(
                f"{self._path.parent}: a later start of this job has taken over; this process writes nothing more"
            )


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[Claim]:
    """Hold a run directory for this process; it is made if it is not there.

    Raises:
        DataError: another process trains into it, or it cannot be written.
    """
    path = directory / _LOCK
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
                holder = _read(file)
                if holder is None or not this.follows(holder):
                    raise DataError(
                        f"run.dir={directory}: another process is training into it "
                        f"({holder or 'it has not said which'}); wait for it or choose another run.dir"
                    )
                log.warning("%s: %s is still there; this start takes over", directory, holder)
                path.unlink()
                file = stack.enter_context(path.open("a+"))
                _lock(file, path)
            file.truncate(0)
            file.write(json.dumps(this.__dict__) + "\n")
            file.flush()
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}): free space, then start again") from error
        yield Claim(path, file)


def _lock(file: TextIOWrapper, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: this file system cannot lock (%s): start no second run there", path.parent, error.strerror)
    return True


def _read(file: TextIOWrapper) -> Start | None:
    file.seek(0)
    try:
        content: dict[str, Any] = json.loads(file.read())
        return Start(content["host"], int(content["pid"]), content["job"], int(content["restart"]))
    except (ValueError, KeyError, TypeError):
        return None


def mark_preempted(directory: Path) -> None:
    """Tell the batch script that this start has left as it was asked to, with its state saved.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    start = Start.this()
    try:
        (directory / MARKER).write_text(f"{start.job}.{start.restart}\n")
    except OSError as error:
        raise DataError(f"{directory / MARKER}: cannot be written ({error.strerror}); the checkpoint is") from error

"""Who may write a run directory: one start of a run at a time.

The holder keeps a lock on `.lock` and its name in it. A process can outlive its job, on a node that SLURM has lost: the
job's next start takes over by putting a new file in the place of the lock, and the process that was left behind finds,
before it writes again, that the name in it is not its own.
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
        token: random, for numbers of processes and jobs come again.
    """

    host: str
    pid: int
    job: str | None
    restart: int
    token: str

    @classmethod
    def this(cls) -> "Start":
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
        """Who the file names; None if it says nothing that can be read.

        It is opened and read each time: over NFS, too, that tells what is there now, where attributes may be old.
        """
        try:
            return _read(self._path.read_text())
        except OSError:
            return None

    def holds(self) -> bool:
        """Whether it is still this start."""
        return self.holder() == self._start

    def check(self) -> None:
        """Raise DataError if another start has taken over."""
        if not self.holds():
            raise DataError(
                f"{self._path.parent}: another start of this run has taken over "
                f"({self.holder() or 'it has not said which'}); this process writes nothing more"
            )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[RunLock]:
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
                holder = _read(path.read_text())
                if holder is None or not this.follows(holder):
                    raise _in_use(directory, holder)
                log.warning("%s: %s is still there; this start takes over", directory, holder)
                path.unlink()
                file = stack.enter_context(path.open("a+"))
                if not _lock(file, path):
                    raise _in_use(directory, _read(path.read_text()))
            file.truncate(0)
            # Not through a buffer, which would try once more when the file is closed.
            os.write(file.fileno(), (json.dumps(this.__dict__) + "\n").encode())
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}): free space, then start again") from error
        claim = RunLock(path, this)
        # Another start may have put its own file there between the opening and the lock.
        claim.check()
        yield claim


def _in_use(directory: Path, holder: Start | None) -> DataError:
    return DataError(
        f"run.dir={directory}: another process is training into it ({holder or 'it has not said which'}); wait for it "
        "or choose another run.dir"
    )


def _lock(file: TextIOWrapper, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("%s: this file system cannot lock (%s): start no second run there", path.parent, error.strerror)
    return True


def _read(text: str) -> Start | None:
    try:
        content: dict[str, Any] = json.loads(text)
        return Start(**content)
    except (ValueError, TypeError):
        return None


def mark_preempted(directory: Path, claim: RunLock | None) -> None:
    """Tell the batch script that this start has left as it was asked to, with its state saved.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    if claim is not None:
        claim.check()
    start = Start.this()
    try:
        replace_file(directory / MARKER, f"{start.job}.{start.restart}\n")
    except OSError as error:
        raise DataError(f"{directory / MARKER}: cannot be written ({error.strerror}); the checkpoint is") from error

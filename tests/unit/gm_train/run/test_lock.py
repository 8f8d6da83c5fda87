"""Who may write a run directory: one start at a time, and a later start of the same job takes over."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError
from gm_train.run.lock import MARKER, RunLock, Start, locked, mark_preempted
from tests.conftest import Atlas, tiny_words
from tests.support.training_runs import history, start

HOLDS = """
import sys, time
from pathlib import Path
from gm_train.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""

Become = Callable[..., None]
FULL = """
import resource, sys
from pathlib import Path
from data_shards.errors import DataError
from gm_train.run.lock import locked
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with locked(Path(sys.argv[1])):
        pass
except DataError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs/a"


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Become:
    """A function that sets SLURM's variables so that this process is a start of a job."""

    def become(job: int | None, restart: int = 0) -> None:
        # SLURM sets the count from the first restart on.
        for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", restart or None)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))

    return become


def holds(run: Path) -> "subprocess.Popen[str]":
    """Start another process, which holds a run directory until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("this", "other", "follows"),
    [
        (("7", 1), ("7", 0), True), (("7", 11), ("7", 2), True), (("7", 1), ("7", 1), False),
        (("7", 0), ("7", 1), False), (("8", 1), ("7", 0), False), ((None, 1), (None, 0), False),
        (("7", 1), (None, 0), False), ((None, 1), ("7", 0), False),
    ],
)  # fmt: skip
def test_only_a_later_start_of_the_same_job_follows(
    this: tuple[str | None, int], other: tuple[str | None, int], follows: bool
) -> None:
    assert Start("here", 1, *this, "a").follows(Start("there", 2, *other, "b")) is follows


def test_a_start_is_read_from_slurms_variables(become: Become) -> None:
    here = (socket.gethostname(), os.getpid())
    first, second = Start.this(), Start.this()
    assert first.token != second.token
    assert first == Start(*here, None, 0, first.token)
    become(12)
    start = Start.this()
    assert start == Start(*here, "12", 0, start.token)
    become(12, restart=3)
    assert str(Start.this()) == f"process {os.getpid()} on {socket.gethostname()}, job 12, restart 3"


def test_a_lock_lasts_as_long_as_it_is_held(run: Path) -> None:
    with locked(run) as lock:
        lock.check()
        with pytest.raises(DataError, match="another process is training into it"), locked(run):
            pass
        lock.check()
    with locked(run) as lock:
        lock.check()


@pytest.mark.parametrize(
    ("held", "asks"),
    [
        ((None, 0), (None, 0)), ((None, 0), (7, 1)), ((7, 0), (None, 0)),
        ((7, 0), (8, 1)), ((7, 1), (7, 1)), ((7, 2), (7, 1)),
    ],
)  # fmt: skip
def test_other_starts_are_refused_with_the_name_of_the_holder(
    run: Path, become: Become, held: tuple[int | None, int], asks: tuple[int | None, int]
) -> None:
    become(*held)
    with locked(run) as lock:
        holder = Start.this()
        become(*asks)
        with pytest.raises(DataError) as refused, locked(run):
            pass
        assert str(refused.value) == (
            f"run.dir={run}: another process is training into it ({holder}); wait for it or choose another run.dir"
        )
        lock.check()


def test_the_next_start_takes_over_from_one_that_still_lives(
    run: Path, become: Become, caplog: pytest.LogCaptureFixture
) -> None:
    become(7)
    with locked(run) as first:
        holder = str(Start.this())
        become(7, restart=1)
        with caplog.at_level(logging.WARNING), locked(run) as second:
            assert f"{holder} still holds the lock; this start takes over" in caplog.text
            second.check()
            for _ in range(2):
                with pytest.raises(DataError, match=r"another start of this run has taken over .*restart 1"):
                    first.check()
            # The new holder also keeps out the start before it, the same start again, and another job.
            for job, restart in ((7, 0), (7, 1), (8, 0)):
                become(job, restart)
                with pytest.raises(DataError, match="job 7, restart 1"), locked(run):
                    pass
            become(7, restart=2)
            with locked(run) as third:
                third.check()
                with pytest.raises(DataError, match="taken over"):
                    second.check()
    with pytest.raises(DataError, match="taken over"):
        first.check()


def test_the_end_of_the_old_process_does_not_release_the_new_lock(run: Path, become: Become) -> None:
    become(7)
    old = holds(run)
    become(7, restart=1)
    with locked(run) as lock:
        end(old)
        lock.check()
        become(8)
        with pytest.raises(DataError, match="job 7, restart 1"), locked(run):
            pass


@pytest.mark.parametrize("job", [None, 8])
def test_a_killed_process_holds_nothing(run: Path, become: Become, job: int | None) -> None:
    become(7)
    old = holds(run)
    become(job)
    with pytest.raises(DataError, match=f"process {old.pid} on .*, job 7, restart 0"), locked(run):
        pass
    end(old)
    with locked(run) as lock:
        lock.check()


def test_a_lock_that_somebody_deleted_is_lost(run: Path) -> None:
    with locked(run) as lock:
        (run / ".lock").unlink()
        with pytest.raises(DataError, match="writes nothing more"):
            lock.check()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"7"', '{"host": "n1"}', '{"pid": "x"}', "\x00" * 40])
def test_a_damaged_lock_file_matters_only_while_it_is_held(run: Path, become: Become, content: str) -> None:
    """No start takes over from an unknown holder, and the holder itself stops, since the file does not name it.

    A lock file that nobody holds is simply written again.
    """
    run.mkdir(parents=True)
    (run / ".lock").write_text(content)
    become(7, restart=1)
    with locked(run) as lock:
        lock.check()
        assert json.loads((run / ".lock").read_text())["restart"] == 1
        (run / ".lock").write_text(content)
        become(7, restart=2)
        with pytest.raises(DataError, match="the lock file does not name it"), locked(run):
            pass
        with pytest.raises(DataError, match="the lock file does not name it"):
            lock.check()


def test_where_files_cannot_be_locked_the_last_start_writes(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(run) as first, locked(run) as second:
        assert "this file system cannot lock" in caplog.text
        second.check()
        with pytest.raises(DataError, match="taken over"):
            first.check()


def test_a_directory_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (run / ".lock").mkdir(parents=True)
    with pytest.raises(DataError, match=r"cannot be written .*: choose another run.dir"), locked(run):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"cannot be written .*: choose another run.dir"),
        locked(tmp_path / "file/run"),
    ):
        pass


def test_a_full_disk(run: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(run)], capture_output=True, text=True)
    assert done.stdout == f"{run}/.lock: cannot be written (File too large): free space, then start again\n", (
        done.stderr
    )


def _hold() -> None:
    """Create the file `held`, then wait until the test creates the file `go`."""
    folder = Path(os.environ["HELD_IN"])
    (folder / "held").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)


def _wait_when_validated() -> None:
    from gm_train.train import recorder

    real = recorder.validate

    def slow(*arguments: Any) -> Any:
        losses = real(*arguments)
        _hold()
        return losses

    recorder.validate = slow


def _wait_in_the_save() -> None:
    from gm_train.strategies.single import SingleProcess

    real = SingleProcess.save

    def slow(self: Any, folder: Path, *arguments: Any) -> None:
        real(self, folder, *arguments)
        _hold()

    SingleProcess.save = slow  # type: ignore[method-assign]


def _wait_before_the_save() -> None:
    from gm_train.checkpoint.save import About

    real = About.save

    def slow(self: Any, folder: Path, position: Any) -> None:
        _hold()
        real(self, folder, position)

    About.save = slow  # type: ignore[method-assign]


@pytest.mark.parametrize("wait", [_wait_when_validated, _wait_before_the_save, _wait_in_the_save])
def test_a_start_that_was_replaced_writes_nothing_more(atlas: Atlas, tmp_path: Path, wait: Callable[[], None]) -> None:
    """Even if the new start has deleted the old one's unfinished checkpoint, the message does not blame the disk."""
    run, log = tmp_path / "run", tmp_path / "log"
    words = tiny_words(atlas.store, run)
    job = {"SLURM_JOB_ID": "7", "HELD_IN": str(tmp_path)}
    old = start(words, log, env=job, prepare=wait)
    try:
        while old.is_alive() and not (tmp_path / "held").exists():
            time.sleep(0.01)
        new = start(words, tmp_path / "new", env=job | {"SLURM_RESTART_COUNT": "1"})
        new.join()
        assert new.exitcode == 0, (tmp_path / "new").read_text()
        finished = history(run)
        (tmp_path / "go").touch()
        old.join()
    finally:
        old.kill()
    text = log.read_text()
    assert old.exitcode == 1, text
    assert "another start of this run has taken over" in text
    assert "this process writes nothing more" in text
    assert "disk" not in text
    assert history(run) == finished


@pytest.mark.parametrize(("job", "restart", "text"), [(7, 0, "7.0\n"), (7, 12, "7.12\n")])
def test_the_marker_names_the_start(tmp_path: Path, become: Become, job: int, restart: int, text: str) -> None:
    (tmp_path / MARKER).write_text("of an earlier start, and longer")
    become(job, restart)
    mark_preempted(tmp_path, None)
    assert (tmp_path / MARKER).read_text() == text


def test_a_marker_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.preempted: cannot be written"):
        mark_preempted(tmp_path / "not there", None)


def test_a_start_that_was_replaced_leaves_no_marker(run: Path, become: Become) -> None:
    become(7)
    with locked(run) as lock:
        become(7, restart=1)
        with locked(run), pytest.raises(DataError, match="taken over"):
            mark_preempted(run, lock)
    assert not (run / MARKER).exists()


def test_the_content_of_the_lock_file_counts_not_its_inode(run: Path) -> None:
    """Inode numbers are used again, so they cannot show on a network file system whether the file was replaced."""
    with locked(run) as lock:
        assert isinstance(lock, RunLock)
        name = json.loads((run / ".lock").read_text())
        (run / "copy").write_text(json.dumps(name))
        (run / "copy").rename(run / ".lock")
        lock.check()
        (run / ".lock").write_text(json.dumps(name | {"token": "another"}))
        with pytest.raises(DataError, match="taken over"):
            lock.check()

"""Work folders keep finished parts, never half a part, and serve one start at a time."""

import errno
import fcntl
import multiprocessing
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError
from data_shards.files.work_folder import new_part, work_folder

SAME = {"files": {"a": "1"}}


class Stop(Exception):
    """Ends a start or a part half-way."""


def quiet(line: str) -> None:
    """Drop a line of the report."""


def write_part(folder: Path, text: str) -> None:
    """Make a part with one file."""
    with new_part(folder) as part:
        (part / "text").write_text(text)


def stop_after(out: Path, name: str, identity: dict[str, Any] = SAME) -> None:
    """Run a start that makes a part and then ends with an error.

    Args:
        out: the output.
        name: of the part.
        identity: of the work.
    """
    with suppress(Stop), work_folder(out, identity, quiet) as work:
        write_part(work / "deep" / name, name)
        raise Stop


def names(folder: Path) -> list[str]:
    """Sorted relative paths of all files that are not hidden."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file())


def test_parts_are_kept_for_the_same_work_alone(tmp_path: Path) -> None:
    out, lines = tmp_path / "out", []
    stop_after(out, "one")
    stop_after(out, "two")
    assert names(tmp_path / ".out.work") == ["deep/one/text", "deep/two/text", "identity.json"]
    with suppress(Stop), work_folder(out, SAME, lines.append) as work:
        assert names(work) == ["deep/one/text", "deep/two/text", "identity.json"]
        raise Stop
    assert "continuing with the parts that an earlier start finished" in lines[0]
    assert "keeps the finished parts" in lines[1]
    with work_folder(out, {"files": {"a": "2"}}, lines.append) as work:
        assert names(work) == ["identity.json"]
    assert "left by a start with other input or options" in lines[2]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_kept_where_nothing_was_finished(tmp_path: Path) -> None:
    with suppress(Stop), work_folder(tmp_path / "out", SAME, quiet) as work:
        (work / "deep").mkdir()
        raise Stop
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_whole_or_not_there(tmp_path: Path) -> None:
    with suppress(Stop), new_part(tmp_path / "one") as part:
        (part / "text").write_text("half")
        raise Stop
    assert list(tmp_path.iterdir()) == []
    with new_part(tmp_path / "one") as late:
        (late / "text").write_text("late")
        write_part(tmp_path / "one", "first")
    assert names(tmp_path) == ["one/text"]
    assert (tmp_path / "one" / "text").read_text() == "first"


def test_a_worker_that_outlives_the_work_brings_it_not_back(tmp_path: Path) -> None:
    with work_folder(tmp_path / "out", SAME, quiet) as work:
        part = work / "deep" / "part"
    with pytest.raises(DataError, match="cannot be written"):
        write_part(part, "late")
    assert list(tmp_path.iterdir()) == []


def _die_in_a_part(out: Path) -> None:
    with work_folder(out, SAME, quiet) as work:
        write_part(work / "one", "whole")
        with new_part(work / "two") as part:
            (part / "text").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_start_left_half_written_is_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=_die_in_a_part, args=(tmp_path / "out",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(names(tmp_path / ".out.work")) == 3
    with work_folder(tmp_path / "out", SAME, quiet) as work:
        assert names(work) == ["identity.json", "one/text"]


def test_two_starts_at_once_are_refused(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path / "out", SAME, quiet) as work,
        pytest.raises(DataError, match=rf"another process is using this folder \(process {os.getpid()} on "),
        work_folder(tmp_path / "out", SAME, quiet),
    ):
        pass
    assert not work.exists()


def test_the_lock_is_one_that_nfs_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS an exclusive lock needs a file that is open for writing."""
    flock, locked = fcntl.flock, []

    def nfs(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)
        locked.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", nfs)
    with work_folder(tmp_path / "out", SAME, quiet):
        assert len(locked) == 1


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"\.out\.work: cannot be created .*choose an --out"),
        work_folder(tmp_path / "file" / "out", SAME, quiet),
    ):
        pass

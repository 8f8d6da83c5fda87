"""Outputs are complete or absent, whatever fails and whenever a process is killed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.files.atomic import replace_file, set_aside, whole_directory, whole_file


def make(path: Path, text: str, replace: bool = False) -> None:
    """Write a directory with one file."""
    with whole_directory(path, replace=replace) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text(text)


def names(folder: Path) -> list[str]:
    """Sorted names of the entries of a folder."""
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_directory_is_replaced(tmp_path: Path) -> None:
    make(tmp_path / "out", "one")
    with pytest.raises(DataError, match="exists already"):
        make(tmp_path / "out", "two")
    make(tmp_path / "out", "two", replace=True)
    assert (tmp_path / "out" / "deep" / "a").read_text() == "two"
    assert names(tmp_path) == ["out"]


def test_what_was_there_comes_back_when_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "one")
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(DataError, match="Input/output error"):
        make(tmp_path / "out", "two", replace=True)
    assert (tmp_path / "out" / "deep" / "a").read_text() == "one"
    assert names(tmp_path) == ["out"]


def test_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    make(tmp_path / "out", "one")
    program = f"""
import os, signal
from pathlib import Path
from data_shards.files.atomic import whole_directory
rename = Path.rename
def dies(path, target):
    if ".partial-" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = dies
with whole_directory(Path({str(tmp_path / "out")!r}), replace=True) as folder:
    (folder / "a").write_text("two")
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert not (tmp_path / "out").exists()
    old = set_aside(tmp_path / "out")
    assert old is not None
    assert (old / "deep" / "a").read_text() == "one"
    old.rename(tmp_path / "out")
    make(tmp_path / "out", "three", replace=True)
    assert names(tmp_path) == ["out"]  # the files of the killed process are removed too


def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay(tmp_path: Path) -> None:
    host, dead = socket.gethostname(), dead_pid()
    stale = [f".out.partial-{host}-{dead}", f".file.partial-{host}-{dead}"]
    others = [f".out.partial-{host}-{os.getppid()}", f".out.partial-elsewhere-{dead}", f".out2.partial-{host}-{dead}"]
    for name in [*stale, *others]:
        (tmp_path / name).mkdir() if "out" in name else (tmp_path / name).write_text("half")
    make(tmp_path / "out", "one")
    with whole_file(tmp_path / "file") as file:
        file.write_text("whole")
    assert names(tmp_path) == sorted([*others, "out", "file"])


def test_a_text_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_file(path, "one")
    replace_file(path, "two")
    assert path.read_text() == "two"
    assert names(tmp_path) == ["a.json"]


def test_a_text_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    replace_file(path, "one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "two")
    assert path.read_text() == "one"
    assert names(tmp_path) == ["a.json"]


def write_late(path: Path) -> None:
    """Write a file; something else creates the same name meanwhile."""
    with whole_file(path) as file:
        file.write_text("late")
        path.write_text("first")


def test_a_file_that_something_else_creates_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with pytest.raises(DataError, match=r"file: was created by something else meanwhile, .* choose another name"):
        write_late(path)

    def no_links(*paths: Path, follow_symlinks: bool) -> None:
        raise PermissionError(1, "Operation not permitted")

    # A file system without hard links.
    monkeypatch.setattr(os, "link", no_links)
    path.unlink()
    with pytest.raises(DataError, match=r"file: was created by something else meanwhile"):
        write_late(path)
    assert path.read_text() == "first"
    with whole_file(tmp_path / "other") as file:
        file.write_text("whole")
    assert (tmp_path / "other").read_text() == "whole"
    assert names(tmp_path) == ["file", "other"]


def test_a_folder_that_something_else_creates_meanwhile_stays(tmp_path: Path) -> None:
    def make_late(path: Path, is_file: bool) -> None:
        with whole_directory(path) as folder:
            (folder / "a").write_text("late")
            there = path if is_file else path / "a"
            there.parent.mkdir(exist_ok=True)
            there.write_text("first")

    for name, is_file in (("file", True), ("folder", False)):
        with pytest.raises(DataError, match=rf"{name}: was created by something else meanwhile"):
            make_late(tmp_path / name, is_file)
    assert (tmp_path / "folder" / "a").read_text() == (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == ["file", "folder"]


def test_a_link_to_nothing_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="exists already"), whole_file(tmp_path / "file"):
        pass
    assert names(tmp_path) == ["file"]

"""Outputs that are either whole or not there."""

import glob
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.errors import DataError
from data_shards.workers import interrupts


@contextmanager
def whole_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """A new directory under a temporary name beside `path`, renamed to it when the block ends without an error.

    What is replaced is set aside for the moment between two renames, and comes back if the second one fails; of a
    process that is killed just there, `set_aside` finds it.

    Raises:
        DataError: `path` exists and `replace` is not set, or the place cannot be written to.
    """
    refuse_existing(path, replace)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise DataError(f"{path}: cannot be created ({error})") from error
    old = temporary.with_name(temporary.name.replace(".partial-", ".old-"))
    try:
        yield temporary
        interrupts.check()
        # What has its name must be whole after a power cut too.
        for found in [*temporary.rglob("*"), temporary]:
            flush(found)
        if replace and path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        flush(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def replace_file(path: Path, text: str) -> None:
    """Write a text file whole or not at all: a reader sees the old one or the new one, also after a power cut.

    One process at a time may write a file of this name.

    Raises:
        OSError: it cannot be written; an old one stays as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    flush(temporary)
    temporary.rename(path)
    flush(path.parent)


def _temporary(path: Path) -> Path:
    """The name beside `path` that this process writes to."""
    return path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


def _clear_stale(path: Path) -> None:
    """Remove what processes of this machine that were killed left half-written or had replaced."""
    for kind in ("partial", "old") if path.exists() else ("partial",):
        start = f".{path.name}.{kind}-{socket.gethostname()}-"
        for found in path.parent.glob(f"{glob.escape(start)}*"):
            pid = found.name.removeprefix(start)
            if not pid.isdecimal() or _is_running(int(pid)):
                continue
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(path: Path) -> None:
    """Wait until a file or the names in a directory are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path | None:
    """What was at `path` before a process that was replacing it was killed between two renames, if it was."""
    return next(iter(sorted(path.parent.glob(f".{glob.escape(path.name)}.old-*"))), None)


def refuse_existing(path: Path, replace: bool = False) -> None:
    """Raise DataError if an output is there already."""
    if path.exists() and not replace:
        raise DataError(f"{path}: exists already: remove it or choose another --out")


def hash_path(path: Path) -> str:
    """SHA-256 (hex) of a file, or of the names and contents of all files in a directory."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(path.rglob("*"), key=lambda found: found.relative_to(path).as_posix()):
        if file_path.is_file():
            digest.update(f"{file_path.relative_to(path).as_posix()}\n{hash_path(file_path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` for a new file, renamed to it when the block ends without an error.

    Raises:
        DataError: `path` exists, or the place cannot be written to.
    """
    refuse_existing(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        yield temporary
        interrupts.check()
        flush(temporary)
        temporary.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    finally:
        with suppress(OSError):  # where nothing can be removed, nothing could be written: that is what is told
            temporary.unlink(missing_ok=True)

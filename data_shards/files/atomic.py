"""Write outputs so that they are either complete or absent."""

import errno
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

_CREATED_MEANWHILE = "{}: was created by something else meanwhile, and stays as it is: choose another name"


@contextmanager
def whole_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Create a temporary directory beside `path` and rename it to `path` when the block ends without an error.

    An output that is replaced is renamed first, and renamed back if the second rename fails. If the process is killed
    between the two renames, `set_aside` finds the old output.

    Raises:
        DataError: `path` exists and `replace` is not set, or the folder cannot be written to.
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
        # Flush before the rename: `path` must be complete even after a power cut.
        for entry in [*temporary.rglob("*"), temporary]:
            flush(entry)
        if replace and path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError as error:
            # An empty folder is replaced by the rename; nothing is lost with it.
            if not replace and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise DataError(_CREATED_MEANWHILE.format(path)) from error
            raise
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
        flush(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def replace_file(path: Path, text: str) -> None:
    """Write a text file completely or not at all: a reader sees the old or the new one, even after a power cut.

    Of several writers at the same time, the last one counts.

    Raises:
        OSError: the file cannot be written; an old file stays as it was.
    """
    _clear_stale(path)
    temporary = _temporary(path)
    try:
        temporary.write_text(text)
        flush(temporary)
        temporary.rename(path)
        flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """The temporary path beside `path` that this process writes to."""
    return path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


def _clear_stale(path: Path) -> None:
    """Remove half-written and replaced outputs of killed processes of this machine."""
    for kind in ("partial", "old") if path.exists() else ("partial",):
        prefix = f".{path.name}.{kind}-{socket.gethostname()}-"
        for leftover in path.parent.glob(f"{glob.escape(prefix)}*"):
            pid = leftover.name.removeprefix(prefix)
            if not pid.isdecimal() or _is_running(int(pid)):
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(path: Path) -> None:
    """Wait until the content of a file, or the entries of a directory, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path | None:
    """The old output of `path`, if a process was killed between the two renames of `whole_directory`; else None."""
    return next(iter(sorted(path.parent.glob(f".{glob.escape(path.name)}.old-*"))), None)


def refuse_existing(path: Path, replace: bool = False) -> None:
    """Raise DataError if an output exists already and is not to be replaced."""
    if os.path.lexists(path) and not replace:  # a link to nothing is in the way, too
        raise DataError(f"{path}: exists already: remove it or choose another name")


def hash_path(path: Path) -> str:
    """SHA-256 (hex) of a file, or of the names and contents of all files in a directory."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(path.rglob("*"), key=lambda entry: entry.relative_to(path).as_posix()):
        if file_path.is_file():
            digest.update(f"{file_path.relative_to(path).as_posix()}\n{hash_path(file_path)}\n".encode())
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` for a new file, which is renamed when the block ends without an error.

    A file that something else has created at `path` meanwhile stays as it is.

    Raises:
        DataError: `path` exists, before the block or after it, or the folder cannot be written to.
    """
    refuse_existing(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        yield temporary
        interrupts.check()
        flush(temporary)
        _rename_new(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    finally:
        with suppress(OSError):  # if removing fails, writing has failed too: that error is the one to raise
            temporary.unlink(missing_ok=True)


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file to a name that must not exist; a plain rename would replace what is there."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError as error:
        raise DataError(_CREATED_MEANWHILE.format(path)) from error
    except OSError:  # a file system without hard links: the check and the rename are two steps there
        if os.path.lexists(path):
            raise DataError(_CREATED_MEANWHILE.format(path)) from None
        temporary.rename(path)
    else:
        temporary.unlink()

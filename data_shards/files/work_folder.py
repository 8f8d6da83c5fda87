"""A folder beside the output of a long preparation with the parts finished so far, from which the next start continues.

The folder `.NAME.work` holds finished parts, each complete or absent. It belongs to one set of inputs and options. It
is kept when a start fails or is killed, and removed when the output is complete.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.files.atomic import flush, replace_file

IDENTITY = "identity.json"
#: Holds the host and process id of the running start. It is a file because NFS cannot lock a folder.
_LOCK = ".lock"
#: Matches the name of a part while it is being made.
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")


@contextmanager
def work_folder(out: Path, identity: Mapping[str, Any], say: Callable[[str], None] = print) -> Iterator[Path]:
    """Open the work folder of an output, with the parts that an earlier start of the same work finished.

    Args:
        out: the output. The folder lies beside it, on the same file system, which all workers must see.
        identity: everything that decides the content of the parts, as JSON. Parts of another identity are removed.
        say: receives each line of the report.

    Raises:
        DataError: another process is using the folder, or the folder cannot be written to.
    """
    folder = _folder_of(out)
    content = json.dumps(identity, sort_keys=True, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error}): choose an --out that can be written to") from error
    try:
        _lock(lock, folder)
        try:
            _begin(folder, content, say)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error}): make room, or choose another --out") from error
        try:
            yield folder
        except BaseException:
            _keep(folder, say)
            raise
        # The output is complete. Ignore errors: a worker that seemed dead may still write here.
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
        # NFS renames the open lock file instead of removing it, so the folder can go only after the lock is closed.
        with suppress(OSError):
            folder.rmdir()


def _folder_of(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.work")


def refuse_again(out: Path, name: str, fix: str = "rename the file") -> None:
    """Raise DataError: the output already has a data set of this name, perhaps from a start that was killed later.

    Args:
        out: the output that the data set should be added to.
        name: the data set.
        fix: advice on how to give it another name, for the message.
    """
    message, folder = f"{out}: has a data set {name!r} already: leave it out, or {fix}", _folder_of(out)
    if folder.exists():
        message += (
            f"; {folder} was left by an earlier start: if that start was adding this data set, it has been added, "
            "and the next --add removes the folder"
        )
    raise DataError(message)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace") or "not known yet"
        raise DataError(
            f"{folder}: another process is using this folder ({holder}): wait for it to end, or choose another --out"
        ) from error
    except OSError:
        pass  # the file system has no locks: the user must avoid two starts at once
    with suppress(OSError):  # the disk may be full: a later write reports it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _begin(folder: Path, content: str, say: Callable[[str], None]) -> None:
    identity = folder / IDENTITY
    if identity.exists() and identity.read_text() == content:
        for unfinished in _unfinished(folder):
            shutil.rmtree(unfinished, ignore_errors=True)
        say(f"{folder}: continuing with the parts that an earlier start finished")
        return
    others = [other for other in folder.iterdir() if other.name != _LOCK]
    if others:
        say(f"{folder}: was left by a start with other input or options; its parts are removed")
    for other in others:
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    save_identity(folder, content)


def save_identity(folder: Path, content: str) -> None:
    """Write the identity of a work folder atomically."""
    replace_file(folder / IDENTITY, content)


def parts_folder(folder: Path) -> Path:
    """The folder for parts of the current identity.

    Its name depends on the identity, so that a worker that outlives its start cannot add parts to another identity.
    """
    return folder / f"parts-{hashlib.sha256((folder / IDENTITY).read_bytes()).hexdigest()[:8]}"


def _keep(folder: Path, say: Callable[[str], None]) -> None:
    """Report that the parts are kept for the next start; remove a folder without parts."""
    for unfinished in _unfinished(folder):
        shutil.rmtree(unfinished, ignore_errors=True)
    if any(set(files) - {IDENTITY, _LOCK} for _, _, files in os.walk(folder)):
        say(f"{folder}: keeps the finished parts: the same command continues from there")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def write_arrays(folder: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Append the raw bytes of arrays to files in a folder; unlike `ndarray.tofile`, a short write raises an error."""
    for name, values in arrays.items():
        with open(folder / name, "ab") as file:
            file.write(np.ascontiguousarray(values).data)


def _unfinished(folder: Path) -> list[Path]:
    """Unfinished parts that killed workers have left."""
    return [Path(root) / name for root, names, _ in os.walk(folder) for name in names if _UNFINISHED.fullmatch(name)]


@contextmanager
def new_part(folder: Path) -> Iterator[Path]:
    """Create a temporary directory that becomes `folder` when the block ends without an error.

    Several workers may make the same part if one of them seemed dead: the first one to finish is kept.

    Raises:
        DataError: the part cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        folder.parent.mkdir(exist_ok=True)  # without `parents`: a late worker must not recreate the work folder
        temporary.mkdir()
        yield temporary
        for entry in temporary.iterdir():
            flush(entry)
        flush(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error}): make room, and check that all workers share this file system"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""What a long preparation has finished so far: a folder beside its output, which the next start goes on from.

The folder `.NAME.work` holds finished parts, each whole or not there. It belongs to one set of inputs and options; it
is kept when a start ends with an error or is killed, and removed when the output stands.
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
#: Holds host and process of the start that is at work; of a folder itself, NFS gives no lock.
_LOCK = ".lock"
#: What a part is named while it is made.
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")


@contextmanager
def work_folder(out: Path, identity: Mapping[str, Any], say: Callable[[str], None] = print) -> Iterator[Path]:
    """The work folder of an output, with what an earlier start of the same work finished.

    Args:
        out: the output; the folder lies beside it, on the same file system, which all workers must see.
        identity: everything that decides the parts, as JSON; what another identity has left is removed.
        say: takes lines of the report.

    Raises:
        DataError: another process is at work there, or the place cannot be written to.
    """
    folder = _place(out)
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
        # The output stands; a worker that was thought dead may still write here.
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
        with suppress(OSError):  # NFS keeps the open lock, under another name, and so the folder until now
            folder.rmdir()


def _place(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.work")


def refuse_again(out: Path, name: str, mend: str = "rename the file") -> None:
    """Raise DataError, since an output has a data set of this name, which a start may have added before it was killed.

    Args:
        out: what is added to.
        name: the data set.
        mend: how it gets another name.
    """
    found, left = f"{out}: has a data set {name!r} already: leave it out, or {mend}", _place(out)
    if left.exists():
        found += (
            f"; if the start that {left} was left by was to add it, this is done: the next --add removes the folder"
        )
    raise DataError(found)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace") or "not known yet"
        raise DataError(
            f"{folder}: another process is at work there ({holder}): wait for it, or choose another --out"
        ) from error
    except OSError:
        pass  # a file system without locks: two starts at once are then the user's to avoid
    with suppress(OSError):  # a full disk: what goes on there says so
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _begin(folder: Path, content: str, say: Callable[[str], None]) -> None:
    found = folder / IDENTITY
    if found.exists() and found.read_text() == content:
        for unfinished in _unfinished(folder):
            shutil.rmtree(unfinished, ignore_errors=True)
        say(f"{folder}: going on from what an earlier start has finished")
        return
    others = [other for other in folder.iterdir() if other.name != _LOCK]
    if others:
        say(f"{folder}: was left by a start with other input or options; its parts are removed")
    for other in others:
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    save_identity(folder, content)


def save_identity(folder: Path, content: str) -> None:
    """Write, at once, what decides the parts of a folder."""
    replace_file(folder / IDENTITY, content)


def parts_folder(folder: Path) -> Path:
    """Where parts go: a worker that an ended start has left makes none among those of another identity."""
    return folder / f"parts-{hashlib.sha256((folder / IDENTITY).read_bytes()).hexdigest()[:8]}"


def _keep(folder: Path, say: Callable[[str], None]) -> None:
    """Say what is kept for the next start; a folder without parts is removed."""
    for unfinished in _unfinished(folder):
        shutil.rmtree(unfinished, ignore_errors=True)
    if any(set(files) - {IDENTITY, _LOCK} for _, _, files in os.walk(folder)):
        say(f"{folder}: keeps what is finished: the same command goes on from there")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def write_arrays(folder: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Append arrays to files of a folder, bare; unlike numpy's own writing, none is cut short without an error."""
    for name, values in arrays.items():
        with open(folder / name, "ab") as file:
            file.write(np.ascontiguousarray(values).data)


def _unfinished(folder: Path) -> list[Path]:
    """What workers that were killed have left."""
    return [Path(place) / name for place, names, _ in os.walk(folder) for name in names if _UNFINISHED.fullmatch(name)]


@contextmanager
def new_part(folder: Path) -> Iterator[Path]:
    """A temporary directory that becomes `folder` when the block ends without an error.

    Several workers may make the same part, after one was thought dead: the first one stands.

    Raises:
        DataError: it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        folder.parent.mkdir(exist_ok=True)  # of the work folder itself only its start decides
        temporary.mkdir()
        yield temporary
        for found in temporary.iterdir():
            flush(found)
        flush(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error}): make room, and see that all workers share this file system"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Outputs that are either whole or not there."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.errors import DataError


@contextmanager
def whole_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """A new directory under a temporary name beside `path`, renamed to it when the block ends without an error.

    Raises:
        DataError: `path` exists and `replace` is not set, or the place cannot be written to.
    """
    refuse_existing(path, replace)
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise DataError(f"{path}: cannot be created ({error})") from error
    try:
        yield temporary
        if replace and path.exists():
            old = path.with_name(f".{path.name}.old-{os.getpid()}")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)

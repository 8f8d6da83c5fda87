"""Hash input files, and detect that they change while they are read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Workers


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of the content and the state of a file, or of all files in a directory.

    Attributes:
        path: the file or directory.
        sha256: SHA-256 of the content, hex.
        state: SHA-256 of file names, sizes and modification times, hex.
    """

    path: Path
    sha256: str
    state: str

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """Read the whole file and hash it.

        Raises:
            DataError: the file cannot be read, or changes meanwhile.
        """
        try:
            before = _state(path)
            fingerprint = cls(path, hash_path(path), before)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}): fetch it again, or fix its permissions") from error
        fingerprint.require_unchanged()
        return fingerprint

    def require_unchanged(self) -> None:
        """Raise DataError if the file has changed since its content was hashed."""
        try:
            now = _state(self.path)
        except OSError as error:
            raise DataError(f"{self.path}: has disappeared ({error}): put it back, and start again") from error
        self.require_state(now)

    def require_state(self, state: str) -> None:
        """Raise DataError if `state` differs from the state in which the content was hashed."""
        if state != self.state:
            raise DataError(f"{self.path}: changed while it was read: wait until it is complete, and start again")


def read_fingerprints(paths: Sequence[Path], workers: Workers) -> list[Fingerprint]:
    """Read the fingerprints of files, in the order of `paths`.

    Raises:
        DataError: a file cannot be read.
    """
    fingerprints = workers.map_in_order(Fingerprint.of, paths)
    return list(Progress(fingerprints, "hashing", len(paths), unit=" files"))


def state_of(path: Path) -> str:
    """The state of a file for `Fingerprint.require_state`; "", which no file has, if the file is missing."""
    try:
        return _state(path)
    except OSError:
        return ""


def _state(path: Path) -> str:
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(path).as_posix()}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()

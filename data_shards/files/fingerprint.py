"""What an input file holds, and whether it is still the same while it is read."""

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
    """Content and state of a file or of all files of a directory.

    Attributes:
        path: the file.
        sha256: of its content, hex.
        state: of sizes and times of change, hex.
    """

    path: Path
    sha256: str
    state: str

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """Read the whole file.

        Raises:
            DataError: it cannot be read, or changes meanwhile.
        """
        try:
            before = _state(path)
            found = cls(path, hash_path(path), before)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}): fetch it again, and see to its permissions") from error
        found.require_unchanged()
        return found

    def require_unchanged(self) -> None:
        """Raise DataError if the file is not as it was when its content was hashed."""
        try:
            now = _state(self.path)
        except OSError as error:
            raise DataError(f"{self.path}: is gone ({error}): put it back, and start again") from error
        self.require_state(now)

    def require_state(self, state: str) -> None:
        """Raise DataError if the file was in another state when its content was hashed."""
        if state != self.state:
            raise DataError(f"{self.path}: changed while it was read: wait until it is complete, and start again")


def read_fingerprints(paths: Sequence[Path], workers: Workers) -> list[Fingerprint]:
    """The fingerprints of files, in their order.

    Raises:
        DataError: one cannot be read.
    """
    found = workers.map_in_order(Fingerprint.of, paths)
    return list(Progress(found, "hashing", len(paths), unit=" files"))


def state_of(path: Path) -> str:
    """The state of a file that may be there, for `Fingerprint.require_state`; of one that is not, that of no file."""
    try:
        return _state(path)
    except OSError:
        return ""


def _state(path: Path) -> str:
    files = sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(path).as_posix()}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()

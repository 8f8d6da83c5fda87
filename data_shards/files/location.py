"""Where a store lies: a local folder, or a URL that TensorStore's own drivers read."""

import hashlib
import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import tensorstore as ts

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path

#: What `tensorstore` reads besides local files.
SCHEMES = ("http", "https", "s3", "gs")
_PIECE = 1 << 24  # bytes of a remote file that are held at once while it is hashed


@dataclass(frozen=True)
class Retries:
    """How often a read that failed is tried again, and how long after.

    Attributes:
        count: further tries after the first.
        initial_s, longest_s: seconds before the first of them; each one waits twice as long as the one before.
        sleep: waits for seconds.
    """

    count: int = 5
    initial_s: float = 0.5
    longest_s: float = 8.0
    sleep: Callable[[float], None] = field(default=time.sleep, compare=False)

    def wait(self, number: int) -> None:
        """Wait before try `number` (1, 2, …)."""
        self.sleep(min(self.longest_s, self.initial_s * 2 ** (number - 1)))


#: Of every read that is not given its own.
RETRIES = Retries()


def open_context(cache_bytes: int = 0) -> ts.Context:
    """What opened arrays share: how often requests to a server are sent again, and a chunk cache of so many bytes."""
    requests = {
        "max_retries": RETRIES.count,
        "initial_delay": f"{RETRIES.initial_s}s",
        "max_delay": f"{RETRIES.longest_s}s",
    }
    kinds = ("http_request_retries", "s3_request_retries", "gcs_request_retries")
    return ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}, **dict.fromkeys(kinds, requests)})


@dataclass(frozen=True)
class Url:
    """A remote folder or file, with those words of `pathlib.Path` that reading a store takes.

    Attributes:
        text: the URL, without a slash at its end.
    """

    text: str

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return self.text.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Url":
        return Url(self.text.rsplit("/", 1)[0])

    def read_bytes(self) -> bytes:
        """The content of the file.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the server cannot be reached or refuses.
        """
        return self._read(None) or b""

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def is_file(self) -> bool:
        """Whether there is such a file. Raises DataError as `read_bytes` does."""
        try:
            self._read(slice(0, 0))
        except FileNotFoundError:
            return False
        return True

    def sha256(self) -> str:
        """SHA-256 (hex) of the file, a piece at a time. Raises as `read_bytes` does."""
        digest = hashlib.sha256()
        start = 0
        while (piece := self._read(slice(start, start + _PIECE))) is not None:
            digest.update(piece)
            start += _PIECE
        # What is left is shorter than a piece.
        digest.update(self._read(slice(start, None)) or b"")
        return digest.hexdigest()

    def _read(self, part: slice | None) -> bytes | None:
        """Bytes of the file; None if it is not that long."""
        try:
            store = ts.KvStore.open(kvstore(self.parent), context=open_context()).result()
            found = store.read(self.name, byte_range=part).result()
        except Exception as error:
            if status(error) == "OUT_OF_RANGE":
                return None
            raise DataError(f"{self}: cannot be read ({first_line(error)}){advice(error)}") from error
        if found.state != "value":
            raise FileNotFoundError(f"{self}: no such file")
        return bytes(found.value)


#: A local path or a URL.
Location = Path | Url


def location_of(store: str | Path | Url) -> Location:
    """The place that a word names: a URL if it has a scheme, else a path.

    Raises:
        DataError: a scheme that nothing here reads.
    """
    if isinstance(store, Path | Url):
        return store
    scheme, separator, rest = store.partition("://")
    if not separator:
        return Path(store)
    if scheme not in SCHEMES:
        raise DataError(f"{store}: stores are read from local folders and {', '.join(f'{s}://' for s in SCHEMES)}")
    if not rest.strip("/"):
        raise DataError(f"{store}: names no folder")
    return Url(store.rstrip("/"))


def kvstore(folder: Location) -> Any:
    """What TensorStore opens a folder by: a spec, or a URL."""
    if isinstance(folder, Path):
        return {"driver": "file", "path": f"{folder.resolve()}/"}  # it refuses `..`
    return f"{folder}/"


def open_file(file: Location) -> IO[bytes]:
    """A file to read from; a remote one is fetched as a whole. Raises as `read_bytes` does."""
    return io.BytesIO(file.read_bytes()) if isinstance(file, Url) else file.open("rb")


def hash_location(file: Location) -> str:
    """SHA-256 (hex) of a file."""
    return file.sha256() if isinstance(file, Url) else hash_path(file)


def status(error: BaseException) -> str:
    """The code that TensorStore's errors begin with, such as "NOT_FOUND"; "" if there is none."""
    found = re.match(r"([A-Z_]+): ", str(error))
    return found[1] if found else ""


def first_line(error: BaseException) -> str:
    """What TensorStore says, in one line and without its specs and bodies."""
    line = str(error).strip().splitlines()[0]
    return re.split(r" \[(?:tensorstore_spec|http_response_body|source locations)=", line)[0]


def advice(error: BaseException) -> str:
    """What to do about an error of a remote store, to stand behind it; "" if nothing is known."""
    text = str(error)
    if "was ignored by server" in text:
        return ": the server does not answer range requests: serve the store with one that does (nginx, S3, …)"
    if "retry attempts failed" in text or status(error) in ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return ": check the address and the server, then start the same again"
    if status(error) in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return ": check the credentials"
    return ""

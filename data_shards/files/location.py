"""Locations of stores: a local folder, or a URL that TensorStore's own drivers read."""

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

#: URL schemes that TensorStore reads.
SCHEMES = ("http", "https", "s3", "gs")
_PIECE = 1 << 24  # bytes of a remote file that are in memory at once while it is hashed


@dataclass(frozen=True)
class Retries:
    """How often and after what delay a failed read is retried.

    Attributes:
        count: number of retries after the first try.
        initial_s: delay before the first retry, in seconds; it doubles with each retry.
        longest_s: upper limit of the delay, in seconds.
        sleep: function that waits for a number of seconds.
    """

    count: int = 5
    initial_s: float = 0.5
    longest_s: float = 8.0
    sleep: Callable[[float], None] = field(default=time.sleep, compare=False)

    def wait(self, number: int) -> None:
        """Wait before retry `number` (1, 2, …)."""
        self.sleep(min(self.longest_s, self.initial_s * 2 ** (number - 1)))


#: Used by every read that is not given its own.
RETRIES = Retries()


def open_context(cache_bytes: int = 0) -> ts.Context:
    """Create the context that opened arrays share: `RETRIES` for requests, and a chunk cache of `cache_bytes`."""
    requests = {
        "max_retries": RETRIES.count,
        "initial_delay": f"{RETRIES.initial_s}s",
        "max_delay": f"{RETRIES.longest_s}s",
    }
    kinds = ("http_request_retries", "s3_request_retries", "gcs_request_retries")
    return ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}, **dict.fromkeys(kinds, requests)})


@dataclass(frozen=True)
class Url:
    """A remote folder or file, with the methods of `pathlib.Path` that reading a store needs.

    Attributes:
        text: the URL, without a trailing slash.
    """

    text: str

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.text.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Url":
        """The URL without its last part."""
        return Url(self.text.rsplit("/", 1)[0])

    def read_bytes(self) -> bytes:
        """Read the whole file.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: the server cannot be reached or refuses the request.
        """
        return self._read(None) or b""

    def read_text(self) -> str:
        """Read the whole file as UTF-8. Raises as `read_bytes` does."""
        return self.read_bytes().decode()

    def is_file(self) -> bool:
        """Whether the file exists. Raises DataError as `read_bytes` does."""
        try:
            self._read(slice(0, 0))
        except FileNotFoundError:
            return False
        return True

    def sha256(self) -> str:
        """SHA-256 (hex) of the file, read in pieces. Raises as `read_bytes` does."""
        digest = hashlib.sha256()
        start = 0
        while (piece := self._read(slice(start, start + _PIECE))) is not None:
            digest.update(piece)
            start += _PIECE
        # The rest is shorter than a piece.
        digest.update(self._read(slice(start, None)) or b"")
        return digest.hexdigest()

    def _read(self, part: slice | None) -> bytes | None:
        """Read a range of bytes, or all if `part` is None; return None if the file ends before the range does."""
        try:
            store = ts.KvStore.open(kvstore(self.parent), context=open_context()).result()
            answer = store.read(self.name, byte_range=part).result()
        except Exception as error:
            if error_status(error) == "OUT_OF_RANGE":
                return None
            raise DataError(f"{self}: cannot be read ({first_line(error)}){advice(error)}") from error
        if answer.state != "value":
            raise FileNotFoundError(f"{self}: no such file")
        return bytes(answer.value)


#: A local path or a URL.
Location = Path | Url


def location_of(store: str | Path | Url) -> Location:
    """Convert text to a location: a URL if it has a scheme, else a path.

    Raises:
        DataError: the scheme is not one of `SCHEMES`, or the URL names no folder.
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
    """The key-value store of a folder for TensorStore: a spec, or a URL."""
    if isinstance(folder, Path):
        return {"driver": "file", "path": f"{folder.resolve()}/"}  # TensorStore refuses `..`
    return f"{folder}/"


def open_file(file: Location) -> IO[bytes]:
    """Open a file for reading bytes; a remote file is fetched completely first. Raises as `read_bytes` does."""
    return io.BytesIO(file.read_bytes()) if isinstance(file, Url) else file.open("rb")


def hash_location(file: Location) -> str:
    """SHA-256 (hex) of a file."""
    return file.sha256() if isinstance(file, Url) else hash_path(file)


def error_status(error: BaseException) -> str:
    """The status code at the start of a TensorStore error, such as "NOT_FOUND"; "" if there is none."""
    match = re.match(r"([A-Z_]+): ", str(error))
    return match[1] if match else ""


def first_line(error: BaseException) -> str:
    """The first line of a TensorStore error, without its specs and response bodies."""
    line = str(error).strip().splitlines()[0]
    return re.split(r" \[(?:tensorstore_spec|http_response_body|source locations)=", line)[0]


def advice(error: BaseException) -> str:
    """Advice on an error of a remote store, to append to the message; "" if there is none."""
    text = str(error)
    if "was ignored by server" in text:
        return ": the server does not answer range requests: serve the store with one that does (nginx, S3, …)"
    if "retry attempts failed" in text or error_status(error) in ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return ": check the address and the server, then run the same command again"
    if error_status(error) in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        return ": check the credentials"
    return ""

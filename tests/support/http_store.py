"""A local HTTP server that supports range requests, which `http.server` does not."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path


@dataclass
class Served:
    """A folder that is being served.

    Attributes:
        url: of the folder.
        ranges: whether the server answers range requests.
        failures: number of further requests to answer with status 500; a negative number fails all.
        requests: requested paths, in order.
    """

    url: str = ""
    ranges: bool = True
    failures: int = 0
    requests: list[str] = field(default_factory=list)


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections, as real servers do

    def __init__(self, served: Served, *words: object, **more: object) -> None:
        self._served = served
        super().__init__(*words, **more)  # type: ignore[arg-type]

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        served = self._served
        served.requests.append(self.path)
        if served.failures:
            served.failures -= 1
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if served.ranges else None
        if wanted is None:
            self._send(HTTPStatus.OK, content, None)
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(HTTPStatus.PARTIAL_CONTENT, content[start:stop], f"bytes {start}-{stop - 1}/{len(content)}")

    def _send(self, code: HTTPStatus, content: bytes, content_range: str | None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serve a folder on localhost until the block ends."""
    served = Served()
    handler = functools.partial(_Handler, served, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield served
        finally:
            server.shutdown()

"""The report of a run that still trains: made again when its records change, and served to this machine alone."""

import contextlib
import errno
import hashlib
import logging
import threading
import time
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data_shards.errors import DataError, OptionError
from gm_train.run.records import METRICS, SKIPPED, read_rows
from gm_train.run.starts import ENVIRONMENT
from gm_train.train.report.page_parts import text
from gm_train.train.run_report import EVAL_DIR, REPORT, Report, make_report

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
#: Names under which a browser reaches this machine. Under another name, a page from elsewhere asks through a browser.
_NAMES = ("127.0.0.1", "localhost")
#: Records whose change makes a new page. An evaluation writes its pictures last, and then the report.
_RECORDS = (
    *(METRICS, SKIPPED, ENVIRONMENT, "config.yaml", "panel.json", "annotation.json", "checkpoints"),
    *(f"{EVAL_DIR}/eval.json", REPORT),
)
#: Making the page takes at most one part in so many of the time: training may need the same cores.
_SHARE = 8
_LEAST_S = 1.0
#: Failures of so many seconds are no accident: a file that is being replaced, as when a run is resumed, is soon whole.
_PATIENCE_S = 5.0

#: Asks for the page every two seconds; an unchanged one is not sent again. Only what is shown is replaced, so that the
#: page stays where it was scrolled to; opened details stay open.
_SCRIPT = """\
<p class=live>live</p><script>
let tag = document.currentScript.dataset.tag;
const state = document.querySelector("p.live");
function show() {
  const failed = document.querySelector("main > p.failure");
  state.textContent = failed ? "no longer live: the page cannot be made, see its top" : "live";
}
async function refresh() {
  try {
    const answer = await fetch("/", {headers: {"If-None-Match": tag}, cache: "no-store"});
    if (answer.status === 200) {
      const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
      const main = document.querySelector("main"), x = scrollX, y = scrollY;
      const open = [...main.querySelectorAll("details")].map(part => part.open);
      next.querySelectorAll("details").forEach((part, i) => { part.open = open[i]; });
      await Promise.all([...next.querySelectorAll("img")].map(image => image.decode().catch(() => null)));
      main.replaceWith(next);
      scrollTo(x, y);
      tag = answer.headers.get("ETag");
    }
    show();
  } catch { state.textContent = "no longer live: `gm-train report --live` has ended"; }
  setTimeout(refresh, 2000);
}
show();
setTimeout(refresh, 2000);
</script>"""


@dataclass(frozen=True)
class Served:
    """A page as it is served.

    Attributes:
        page: UTF-8.
        tag: changes with what the page shows.
    """

    page: bytes
    tag: str


class LivePage:
    """The page of a run, made again if its records have changed since; nothing is written into the run.

    Args:
        run_dir: the run directory; it may have no step yet.

    Raises:
        DataError: a record is damaged.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._stamp: object = None
        self._next = 0.0
        self._failing_since: float | None = None
        self._report, self._served = self._make()

    def now(self) -> Served:
        """The page as of now, or as of some seconds ago while the records change all the time.

        While it cannot be made again, it stays for some seconds; then it says why.
        """
        with self._lock:
            begun = time.monotonic()
            if begun >= self._next and self._stamp != self._stamp_now():
                try:
                    self._report, self._served = self._make()
                    self._failing_since = None
                except Exception as error:  # whatever it is, the reader must learn of it
                    self._wait(begun)
                    if self._failing_since is None:
                        self._failing_since = begun
                    if begun - self._failing_since >= _PATIENCE_S:
                        self._fail(error)
            return self._served

    def _make(self) -> tuple[Report, Served]:
        begun, stamp = time.monotonic(), self._stamp_now()
        report = make_report(self._run_dir) if self._has_steps() else _empty(self._run_dir)
        served = _serve(report)
        self._stamp = stamp
        self._wait(begun)
        return report, served

    def _wait(self, begun: float) -> None:
        """Leave most of the time to others."""
        ended = time.monotonic()
        self._next = ended + max(_LEAST_S, _SHARE * (ended - begun))

    def _fail(self, error: Exception) -> None:
        """Serve the last page that could be made, with the reason on it."""
        is_ours = isinstance(error, DataError)
        reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
        message = f"This page is no longer up to date, because it cannot be made again. {reason}"
        served = _serve(replace(self._report, body=f"<p class='older failure'>{text(message)}</p>{self._report.body}"))
        if served.tag != self._served.tag:
            log.warning("%s: the page cannot be made again: %s", self._run_dir, reason, exc_info=not is_ours)
        self._stamp = None  # a record may come back as it was
        self._served = served

    def _has_steps(self) -> bool:
        return any("loss" in row for row in read_rows(self._run_dir / METRICS))

    def _stamp_now(self) -> object:
        """When each record was changed last, and its size; None for those that are not there."""
        stamps: list[tuple[int, int] | None] = []
        for name in _RECORDS:
            try:
                state = (self._run_dir / name).stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((state.st_mtime_ns, state.st_size))
        return stamps


def _empty(run_dir: Path) -> Report:
    name = run_dir.resolve().name
    return Report(name, f"<h1>{text(name)}</h1><p>No step is recorded yet.</p>", {})


def _serve(report: Report) -> Served:
    tag = f'"{hashlib.sha256(report.body.encode()).hexdigest()[:16]}"'
    page = report.page(_SCRIPT.replace("<script>", f"<script data-tag='{tag}'>"))
    return Served(page.encode(), tag)


class LiveServer(ThreadingHTTPServer):
    """Serves the page of a run on 127.0.0.1.

    Args:
        page: what is served.
        port: 0 for a free one.

    Raises:
        OptionError: the port is in use, or may not be used.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        try:
            super().__init__((HOST, port), _Handler)
        except OverflowError as error:
            raise OptionError(f"--port {port}: a port is a number from 0 to 65535") from error
        except OSError as error:
            why = "is in use already" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise OptionError(f"--port {port}: {why}: choose another one, or 0 for a free one") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def handle(self) -> None:
        """Answer; a browser that has closed the page in the meantime is no fault."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Send the page, or that the browser has it already."""
        assert isinstance(self.server, LiveServer)
        if self.headers.get("Host", "").split(":")[0] not in _NAMES or self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        served = self.server.page.now()
        is_known = self.headers.get("If-None-Match") == served.tag
        self.send_response(HTTPStatus.NOT_MODIFIED if is_known else HTTPStatus.OK)
        self.send_header("ETag", served.tag)
        self.send_header("Cache-Control", "no-store")
        if is_known:
            self.end_headers()
            return
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(served.page)))
        self.end_headers()
        self.wfile.write(served.page)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""

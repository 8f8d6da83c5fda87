"""The live report: a growing run serves new steps, to this machine alone, and only when something has changed."""

import http.client
import itertools
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_shards.errors import OptionError
from gm_train.config.load import load_config
from gm_train.run.records import METRICS
from gm_train.train import live_report
from gm_train.train.fit import fit
from gm_train.train.live_report import LivePage, LiveServer, Served
from gm_train.train.run_report import Report, make_report
from tests.conftest import Atlas, tiny_words
from tests.support.browser import dump, needs_browser


@pytest.fixture(scope="module")
def finished(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    fit(load_config(*tiny_words(atlas.store, run)))
    return run


@pytest.fixture
def growing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, LiveServer]]:
    """A run that has begun and has no step yet, and its server."""
    monkeypatch.setattr(live_report, "_SHARE", 0)
    monkeypatch.setattr(live_report, "_LEAST_S", 0.0)
    run = Path(shutil.copytree(finished, tmp_path / "tiny"))
    for name in (METRICS, "report.html"):
        (run / name).unlink()
    with LiveServer(LivePage(run), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield run, server
        server.shutdown()
        thread.join()


@dataclass
class Clock:
    """Stands in for the module `time` where a page is made."""

    now: float

    def monotonic(self) -> float:
        return self.now


def get(server: LiveServer, path: str = "/", **headers: str) -> tuple[int, str, str | None]:
    """Ask for a path; returns the status, the text and the tag."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=300)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.getheader("ETag")


def test_it_serves_new_steps_and_nothing_twice(growing: tuple[Path, LiveServer], finished: Path) -> None:
    run, server = growing
    status, page, tag = get(server)
    assert (status, "No step is recorded yet" in page) == (200, True)
    lines = (finished / METRICS).read_text().splitlines(keepends=True)
    assert "If-None-Match" in page
    seen = [tag]
    for upto in (4, 9):
        with (run / METRICS).open("w") as file:
            file.writelines(lines[:upto])
        last = max(row["step"] for row in map(json.loads, lines[:upto]) if "loss" in row)
        status, page, tag = get(server, **{"If-None-Match": str(seen[-1])})
        assert status == 200
        assert re.findall(r"gm-train run, (\d+) steps", page) == [str(last)]
        assert tag not in seen
        assert get(server, **{"If-None-Match": str(tag)})[:2] == (304, "")
        seen.append(tag)
    assert not (run / "report.html").exists()


class Watched(BaseHTTPRequestHandler):
    """Answers once the browser has asked for the page three times, so that it goes on loading until then."""

    done: threading.Event

    def do_GET(self) -> None:
        self.done.wait(60)
        self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        """Requests are not logged."""


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_new_steps_and_stays_where_it_was(
    growing: tuple[Path, LiveServer], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run grows when the browser asks for the second time."""
    run, server = growing
    text = (finished / METRICS).read_text()
    (run / METRICS).write_text(text[: text.index('{"step": 6')])
    done, asked, now = threading.Event(), 0, server.page.now
    monkeypatch.setattr(Watched, "done", done, raising=False)
    holds = ThreadingHTTPServer(("127.0.0.1", 0), Watched)

    def watched() -> Served:
        nonlocal asked
        asked += 1
        if asked == 2:
            (run / METRICS).write_text(text)
        if asked == 3:
            done.set()
        served = now()
        more = (
            "<p style='height: 3000px'></p><script>scrollTo(0, 250); const was = document.querySelector('main');"
            "setInterval(() => { document.documentElement.dataset.seen = [scrollY, was.isConnected]; }, 50);</script>"
            f"<img src='http://127.0.0.1:{holds.server_port}/'>"
        )
        return Served(served.page + more.encode(), served.tag)

    monkeypatch.setattr(server.page, "now", watched)
    assert "gm-train run, 5 steps" in now().page.decode()
    with holds:
        thread = threading.Thread(target=holds.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            shown = dump(f"{server.url}/", tmp_path)
        finally:
            done.set()
            holds.shutdown()
            thread.join()
    assert asked >= 3
    assert "gm-train run, 12 steps" in shown
    assert re.findall('data-seen="([^"]*)"', shown) == ["250,false"]  # another page, at the same place


def test_a_record_that_is_being_replaced_leaves_the_page_as_it_is(
    growing: tuple[Path, LiveServer], finished: Path
) -> None:
    run, server = growing
    shutil.copy(finished / METRICS, run / METRICS)
    whole = get(server)
    (run / METRICS).write_text("{\n{}\n")
    assert get(server) == whole
    text = (finished / METRICS).read_text()
    (run / METRICS).write_text(text[: text.index('"step": 6')])  # its last line is not complete yet
    assert "gm-train run, 5 steps" in get(server)[1]


def broken(run_dir: Path) -> Report:
    raise TypeError(f"<{run_dir.name}> has no score")


@pytest.mark.parametrize(
    ("fails", "message"),
    [("record", "metrics.jsonl"), ("code", "TypeError: &lt;tiny&gt; has no score")],
)
def test_a_lasting_failure_is_shown_on_the_last_page_until_it_is_over(
    fails: str, message: str, growing: tuple[Path, LiveServer], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, server = growing
    clock = Clock(begun := time.monotonic() + 1.0)
    monkeypatch.setattr(live_report, "time", clock)
    shutil.copy(finished / METRICS, run / METRICS)
    whole = get(server)
    was = (run / METRICS).stat()
    if fails == "record":
        (run / METRICS).write_text("{\n{}\n")
    else:
        os.utime(run / METRICS, ns=(0, 0))
        monkeypatch.setattr(live_report, "make_report", broken)
    for later in (0.0, 4.9):
        clock.now = begun + later
        assert get(server) == whole
    clock.now = begun + 6.0
    status, page, tag = get(server, **{"If-None-Match": str(whole[2])})
    assert status == 200
    failure = re.findall("<main><p class='older failure'>(.*?)</p>", page)
    assert len(failure) == 1
    assert message in failure[0]
    assert "gm-train run, 12 steps" in page  # what could be shown last
    assert get(server, **{"If-None-Match": str(tag)})[0] == 304
    monkeypatch.setattr(live_report, "make_report", make_report)
    shutil.copy(finished / METRICS, run / METRICS)
    os.utime(run / METRICS, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert get(server) == whole


def test_a_browser_that_closes_the_page_while_it_is_sent_is_no_fault(
    growing: tuple[Path, LiveServer], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, server = growing
    closed, ended, end = threading.Event(), threading.Event(), server.shutdown_request

    def large() -> Served:
        assert closed.wait(60)
        return Served(bytes(50_000_000), '"large"')

    def shutdown_request(request: socket.socket) -> None:
        end(request)
        ended.set()

    monkeypatch.setattr(server.page, "now", large)
    monkeypatch.setattr(server, "shutdown_request", shutdown_request)
    with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    closed.set()
    assert ended.wait(60)
    assert capsys.readouterr().err == ""


def test_only_this_machine_and_only_the_page_are_served(growing: tuple[Path, LiveServer]) -> None:
    _, server = growing
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/config.yaml")[0] == 404
    assert get(server, "/../config.yaml")[0] == 404
    assert get(server, Host="evil.example")[0] == 404
    assert get(server, Host="localhost:9000")[0] == 200  # a forwarded port


def test_a_page_is_not_made_again_at_once(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training may need the cores."""
    monkeypatch.setattr(live_report, "_LEAST_S", 3600.0)
    run = Path(shutil.copytree(finished, tmp_path / "tiny"))
    page = LivePage(run)
    before = page.now()
    with (run / METRICS).open("a") as file:
        file.write((finished / METRICS).read_text().splitlines()[0].replace('"step": 1', '"step": 99') + "\n")
    assert page.now() is before


@pytest.mark.parametrize("makes", [True, False])
def test_making_pages_takes_at_most_an_eighth_of_the_time(
    makes: bool, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page takes two seconds here, whether it can be made in the end or not."""
    clock, made = Clock(1000.0), list[float]()

    def slow(run_dir: Path) -> Report:
        clock.now += 2.0
        made.append(clock.now)
        return make_report(run_dir) if makes or len(made) == 1 else broken(run_dir)

    monkeypatch.setattr(live_report, "time", clock)
    monkeypatch.setattr(live_report, "make_report", slow)
    run = Path(shutil.copytree(finished, tmp_path / "tiny"))
    page = LivePage(run)
    for number in range(300):
        clock.now += 0.25
        os.utime(run / METRICS, ns=(number, number))  # as if another step were recorded
        page.now()
    waited = [later - 2.0 - earlier for earlier, later in itertools.pairwise(made)]
    assert len(waited) >= 3
    assert set(waited) == {16.0}


def test_a_port_in_use_or_of_no_meaning_is_refused(growing: tuple[Path, LiveServer]) -> None:
    run, server = growing
    with pytest.raises(OptionError, match=rf"--port {server.server_port}: is in use already: choose another one, or 0"):
        LiveServer(LivePage(run), server.server_port)
    with pytest.raises(OptionError, match="--port 70000: a port is a number from 0 to 65535"):
        LiveServer(LivePage(run), 70000)

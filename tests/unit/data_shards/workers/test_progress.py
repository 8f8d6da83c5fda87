"""Progress: lines in a log, a bar in a terminal."""

import io
import sys

import pytest

from data_shards.workers import progress
from data_shards.workers.progress import Progress


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def count_to_four(at_once: bool) -> None:
    """Show progress from 0 to 4."""
    with Progress(total=4, desc="counting", unit=" cells", at_once=at_once) as bar:
        for number in range(4):
            bar.set_postfix_str(f"loss {number}", refresh=False)
            bar.update()


def test_what_is_soon_done_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    count_to_four(at_once=False)
    assert list(Progress(range(3), "again")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_the_first_line_comes_at_once_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    count_to_four(at_once=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("counting: 1/4 [")
    assert line.endswith("loss 0]")


def test_what_takes_long_writes_whole_lines_into_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0)
    count_to_four(at_once=False)
    text = capsys.readouterr().err
    assert [line.split(" [")[0] for line in text.splitlines()] == [f"counting: {done}/4" for done in range(5)]
    assert text.endswith("\n")
    assert "\r" not in text


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    count_to_four(at_once=True)
    assert terminal.getvalue().startswith("\rcounting:   0%|")
    assert "100%|" in terminal.getvalue()
    assert terminal.getvalue().count("\n") == 1

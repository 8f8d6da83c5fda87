"""Processes of an ablation: threads, failures and leaving."""

import os
import signal
import time
from pathlib import Path

import pytest

from data_shards.errors import DataError
from gm_train.ablation.child_process import ChildProcess


def script(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
    """A module of this text, as words for Python."""
    (folder / "of_a_test.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return ["of_a_test"]


def wait(child: ChildProcess) -> None:
    while not child.has_ended():
        time.sleep(0.02)


def test_a_process_gets_its_threads_and_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = script(tmp_path, monkeypatch, "import os\nprint(os.environ['OMP_NUM_THREADS'])\n")
    wait(ChildProcess("it", words, tmp_path / "deep" / "log", 3))
    wait(ChildProcess("it", words, tmp_path / "deep" / "log", 4))
    assert (tmp_path / "deep" / "log").read_text() == "3\n4\n"


def test_a_failure_ends_with_the_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = script(tmp_path, monkeypatch, "import sys\nprint('before')\nsys.exit('the disk is full')\n")
    with pytest.raises(
        DataError, match=r"(?s)the training failed \(code 1\); its output is in .*log.*the disk is full"
    ):
        wait(ChildProcess("the training", words, tmp_path / "log", 1))
    words = script(tmp_path, monkeypatch, "import os\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(DataError, match="killed by SIGKILL"):
        wait(ChildProcess("the training", words, tmp_path / "log", 1))


def test_leaving_waits_until_it_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print('saved', flush=True), sys.exit(85)))\n"
        "print('ready', flush=True)\ntime.sleep(600)\n"
    )
    child = ChildProcess("it", script(tmp_path, monkeypatch, text), tmp_path / "log", 1)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.02)
    child.leave()
    assert (tmp_path / "log").read_text() == "ready\nsaved\n"
    child.leave()  # it has ended: nothing to wait for


def test_several_save_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first one leaves only after the second one was asked.
    text = (
        "import pathlib, signal, sys, time\n"
        "own, other = map(pathlib.Path, sys.argv[1:])\n"
        "def leave(*_):\n"
        "    own.touch()\n"
        "    while not other.exists():\n"
        "        time.sleep(0.02)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(85)\n"
        "signal.signal(signal.SIGTERM, leave)\nprint('ready', flush=True)\ntime.sleep(600)\n"
    )
    words = script(tmp_path, monkeypatch, text)
    names = [str(tmp_path / name) for name in ("a", "b")]
    logs = [tmp_path / "log-a", tmp_path / "log-b"]
    children = [
        ChildProcess("it", [*words, *order], log, 1) for order, log in zip((names, names[::-1]), logs, strict=True)
    ]
    while not all("ready" in log.read_text() for log in logs):
        time.sleep(0.02)
    for child in children:
        child.ask_to_leave()
    for child in children:
        child.leave()
    assert [log.read_text() for log in logs] == ["ready\nsaved\n"] * 2


def test_ctrl_c_does_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = script(tmp_path, monkeypatch, "import os\nprint(os.getpgid(0) == os.getpid())\n")
    wait(ChildProcess("it", words, tmp_path / "log", 1))
    assert (tmp_path / "log").read_text() == "True\n"
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN

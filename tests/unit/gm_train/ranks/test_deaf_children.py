"""Processes that ignore the signals to leave do not outlive the process that started them, and do not keep it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import signal, sys, time
from multiprocessing import get_context
from gm_train.ranks.signals import children_deaf

if __name__ == "__main__":
    sleeper = get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    with children_deaf():
        sleeper.start()
    print(sleeper.pid, flush=True)
    sys.stdin.read()
"""


def test_they_ignore_sigterm_until_their_parent_exits(tmp_path: Path) -> None:
    """A loader that is still referred to at exit has such processes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, signal.SIGTERM)
        time.sleep(1)  # that it does nothing cannot be observed otherwise
        os.kill(child, 0)
        parent.stdin.close()
        try:
            assert parent.wait(60) == 0
        finally:
            parent.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    assert not Path(f"/proc/{child}").exists()

"""What `/proc` tells of processes: of living ones, and of those that have ended."""

import os
import subprocess
import sys
import time

import numpy as np

from data_shards.workers import proc

GONE = 4_194_305  # above the largest number of a process


def test_of_a_living_process() -> None:
    assert os.getpid() in proc.processes()
    assert proc.status()["Pid"] == str(os.getpid())
    assert proc.memory("VmHWM") >= proc.memory("VmRSS") > 1 << 20  # type: ignore[operator]
    assert proc.processor_name()


def test_of_a_process_that_does_not_exist() -> None:
    assert proc.status(GONE) == {}
    assert proc.memory("VmRSS", GONE) is None
    assert proc.words(GONE, "cmdline") == []
    assert proc.descendants(GONE) == []


def test_words_and_descendants() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    env = os.environ | {"MARK": "here it is"}
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, env=env)
    try:
        deadline = time.monotonic() + 120
        while len(proc.descendants(parent.pid)) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        (child,) = proc.descendants(parent.pid)
        assert {parent.pid, child} <= set(proc.descendants(os.getpid()))
        assert proc.words(parent.pid, "cmdline")[1:] == ["-c", program]
        assert "MARK=here it is" in proc.words(child, "environ")
        assert proc.status(child)["PPid"] == str(parent.pid)
    finally:
        parent.communicate(b"\n")
    assert proc.words(parent.pid, "cmdline") == []


def test_a_peak_is_forgotten() -> None:
    values = np.ones(1 << 25)
    high = proc.memory("VmHWM")
    del values
    proc.forget_peak()
    assert high - proc.memory("VmHWM") > 100 << 20  # type: ignore[operator]

"""Memory that a step frees stays with the process; measured in processes of their own."""

import subprocess
import sys

import pytest

_SCRIPT = """
import ctypes, sys, torch
from gm_train.ranks.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "keep":
    keep_freed_memory(torch.device("cpu"))
before = resident()
block = torch.ones(2**25)
full = resident() - before
del block
print(full, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_stays_with_the_process(kept: bool) -> None:
    command = [sys.executable, "-c", _SCRIPT, "keep" if kept else "default"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    full, after = map(int, done.stdout.split())
    assert full > 2**26
    assert (after > full // 2) is kept

"""Memory that a step frees stays with the process; measured in processes of their own."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gm_train.config.load import load_config
from gm_train.ranks.allocator import SETTINGS, keep_freed_memory
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words

_SCRIPT = """
import sys, torch
from gm_train.ranks.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

kept = sys.argv[1] == "keep" and keep_freed_memory(torch.device("cpu"))
before = resident()
blocks = [torch.ones(2**25) for _ in range(3)]
full = resident() - before
blocks.clear()
print(int(kept), full, resident() - before)
"""


def kept_of(words: str, **settings: str) -> tuple[bool, bool]:
    """Whether the function says that memory is kept, and whether it is."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | settings
    command = [sys.executable, "-c", _SCRIPT, words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600, env=environment)
    kept, full, after = map(int, done.stdout.split())
    assert full > 3 * 2**26
    return bool(kept), after > full // 2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the GNU C library")
def test_freed_memory_stays_with_the_process() -> None:
    assert kept_of("keep") == (True, True)
    assert kept_of("default") == (False, False)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the GNU C library")
def test_settings_of_the_user_stay() -> None:
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    assert kept_of("keep", **settings) == (False, False)


def test_a_training_calls_it(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr("gm_train.train.fit.keep_freed_memory", devices.append)
    fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=1"))
    assert devices == [torch.device("cpu")]


def test_a_gpu_has_an_allocator_of_its_own() -> None:
    assert not keep_freed_memory(torch.device("meta"))

"""Disks that are full or read-only."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """Mount a file system in memory of a few kilobytes at a new folder."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _unmount(folder)


def resize(folder: Path, size_kb: int) -> None:
    """Make a small disk larger, or read-only with size 0."""
    _mount("-o", f"remount,size={size_kb}k" if size_kb else "remount,ro", str(folder))


def _unmount(folder: Path, patience: float = 30) -> None:
    """Wait for workers that end a moment after their command and still hold a file."""
    end = time.monotonic() + patience
    while (done := subprocess.run(["umount", str(folder)], capture_output=True, text=True)).returncode:
        assert time.monotonic() < end, done.stderr
        time.sleep(0.1)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a file system needs root: {done.stderr.strip()}")

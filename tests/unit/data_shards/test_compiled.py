"""Cached machine code: used again while nothing that it was made of changes, made anew when something does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLER = """
from data_shards.compiled import compiled
from below import FACTOR, scale


@compiled()
def total(values):
    found = 0.0
    for value in values:
        found += scale(value) + FACTOR
    return found


@compiled("float64(float64)")
def at_import(value):
    return scale(value)
"""
BELOW = """
from data_shards.compiled import compiled
from lowest import half

FACTOR = {factor}


@compiled()
def scale(value):
    return half(value) * {scale}
"""
LOWEST = """
import numpy as np
from data_shards.compiled import compiled


@compiled(inline="always", fastmath={fast})
def half(value):
    return np.{rounding}(value {operation} 2)
"""
RUN = """
import numpy as np
from caller import at_import, total

print(total(np.array([2.0, 5.0])), at_import(4.0), sum(total.stats.cache_hits.values()),
      sum(at_import.stats.cache_hits.values()))
"""


def run(
    folder: Path, factor: int = 1, scale: int = 1, operation: str = "/", rounding: str = "floor", fast: bool = False
) -> tuple[float, float, int, int]:
    """Results of `total` and `at_import`, and how often their machine code was taken from the cache."""
    (folder / "below.py").write_text(BELOW.format(factor=factor, scale=scale))
    (folder / "lowest.py").write_text(LOWEST.format(operation=operation, rounding=rounding, fast=fast))
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, "-c", RUN], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, at_import, *hits = done.stdout.split()
    return float(total), float(at_import), int(hits[0]), int(hits[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "caller.py").write_text(CALLER)
    assert run(tmp_path) == (5.0, 2.0, 0, 0)
    assert run(tmp_path) == (5.0, 2.0, 1, 1)
    return tmp_path


def test_a_function_of_another_file_that_changes_is_seen(folder: Path) -> None:
    assert run(folder, scale=10) == (32.0, 20.0, 0, 0)


def test_a_function_two_files_below_is_seen(folder: Path) -> None:
    assert run(folder, operation="*") == (16.0, 8.0, 0, 0)


def test_a_number_of_another_file_is_seen_by_those_who_use_it(folder: Path) -> None:
    total, at_import, total_hits, at_import_hits = run(folder, factor=100)
    assert (total, at_import) == (203.0, 2.0)
    assert (total_hits, at_import_hits) == (0, 1)


def test_another_attribute_is_seen(folder: Path) -> None:
    """The same instructions and constants, on another name."""
    assert run(folder, rounding="ceil") == (6.0, 2.0, 0, 0)


def test_other_options_of_numba_are_seen(folder: Path) -> None:
    assert run(folder, fast=True)[2:] == (0, 0)

"""Every folder of tests is collected: pytest passes over some names by default, `dist` among them."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    assert {folder.name for folder in folders} >= {"unit", "dist", "slurm", "faults", "golden", "e2e"}
    assert not [folder for folder in folders if any(folder.match(pattern) for pattern in passed_over)]

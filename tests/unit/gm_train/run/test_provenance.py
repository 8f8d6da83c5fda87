"""The software that made a result is named by its revision."""

import subprocess
from pathlib import Path

import pytest

from gm_train.run.provenance import git_revision, packages

ROOT = Path(__file__).parents[4]


def test_the_revision_is_that_of_the_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    revision = git_revision()
    assert revision is not None
    assert revision.removesuffix("+") == head.strip()


def test_installed_packages_have_versions() -> None:
    assert packages()["torch"]

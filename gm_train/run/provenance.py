"""The software that made a result: the git revision and the versions of all packages."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """Return the git revision that the package runs from, with "+" if files differ; None if it is not a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def packages() -> dict[str, str]:
    """Return the versions of the installed packages, sorted by name."""
    # An unfinished uninstallation leaves distributions without a name.
    versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(versions.items()))

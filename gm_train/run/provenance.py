"""What a result was made with: the git revision and the versions of all packages."""

import importlib.metadata
import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """Revision of the checkout that the package runs from, with "+" if files differ; None for an installed package."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str]:
    """Names and versions of the installed packages, by name."""
    # An unfinished uninstallation leaves distributions without a name.
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items()))

"""Run gm-train's commands one after another, and show each as a user would type it."""

import shlex
import sys
from pathlib import Path

from gm_train.cli.main import main


def run_command(*words: str | Path) -> None:
    """Show a command and run it in this process.

    Args:
        words: after `gm-train`.

    Raises:
        SystemExit: it failed; with its exit code.
    """
    texts = [str(word) for word in words]
    print(f"\n$ gm-train {shlex.join(texts)}", flush=True)
    code = main(texts)
    if code:
        sys.exit(code)

"""Kill `gm-train data shards` at any of its operations on disk."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_shards.prepare import rank_datasets

#: Functions of `os` that change a disk; the methods of Path and shutil call these.
STEPS = ("rename", "mkdir", "rmdir", "unlink", "fsync")


def set_up(part_cells: int = 16, die_at: int | None = None, count: Path | None = None, user: int | None = None) -> None:
    """Prepare the process of the command; call this first in it.

    Args:
        part_cells: cells of a part.
        die_at: number (from 1) of the operation on disk before which the process is killed; None for none.
        count: file that receives the number of operations so far.
        user: user id to switch to.
    """
    rank_datasets.PART_CELLS = part_cells
    if user is not None:
        os.setuid(user)
    operations = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **more: Any) -> Any:
            nonlocal operations
            operations += 1
            if operations == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if count is not None:
                count.write_text(str(operations))
            return real(*arguments, **more)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))

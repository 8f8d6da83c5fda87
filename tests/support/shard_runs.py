"""`gm-train data shards` killed at any step that it takes on disk."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_shards.prepare import rank_datasets

#: What changes a disk from Python; Path's methods and shutil call these.
STEPS = ("rename", "mkdir", "rmdir", "unlink", "fsync")


def set_up(part_cells: int = 16, die_at: int | None = None, count: Path | None = None, user: int | None = None) -> None:
    """To be called first in the process of the command.

    `part_cells` are the cells of a part; `die_at` is the number of the step on disk before which the process is killed;
    `count` is a file that says how many steps were taken so far; `user` is the user id that it goes on with.
    """
    rank_datasets.PART_CELLS = part_cells
    if user is not None:
        os.setuid(user)
    taken = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **more: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if count is not None:
                count.write_text(str(taken))
            return real(*arguments, **more)

        return step

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))

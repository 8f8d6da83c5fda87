"""Progress of long operations: a bar in a terminal, lines in a log."""

import sys
from typing import Any

from tqdm import tqdm

_EVERY_S = 15.0


class Progress(tqdm):
    """tqdm's bar; if standard error is not a terminal, as in a SLURM job, a line every 15 seconds instead.

    Args:
        arguments: positional arguments of tqdm.
        at_once: print the first line without waiting 15 seconds.
        options: keyword arguments of tqdm.
    """

    def __init__(self, *arguments: Any, at_once: bool = False, **options: Any) -> None:
        self._in_lines = not sys.stderr.isatty()
        self._due = self._in_lines and at_once
        if self._in_lines:
            options.setdefault("bar_format", "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]")
            options |= {"mininterval": _EVERY_S, "delay": _EVERY_S, "miniters": 1, "leave": False}
        super().__init__(*arguments, **options)

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by `n`, as tqdm does."""
        shown = super().update(n)
        if self._due:
            self._due = False
            self.refresh()
        return shown

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar, or print a line."""
        if not self._in_lines:
            return super().display(msg, pos)
        # tqdm clears a bar with an empty message.
        text = str(self) if msg is None else msg
        if text:
            print(text, file=self.fp, flush=True)
        return False

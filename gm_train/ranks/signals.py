"""Signals that ask a run to leave: they set a flag, and the training saves at its next step."""

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import TYPE_CHECKING, Any

from gm_train.ranks.launch_local import SIGNALS, is_first

if TYPE_CHECKING:  # it brings torch, which takes seconds; signals are caught before
    from gm_train.ranks.ranks import Ranks


class Leaving:
    """Catches SIGTERM, SIGUSR1 and SIGINT from `install` to `restore`.

    Attributes:
        agreed: the signal that all ranks leave by, or None.
    """

    def __init__(self) -> None:
        self.agreed: signal.Signals | None = None
        self._noted: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take the signals; again after something else, such as Lightning, has taken them."""
        for number in SIGNALS:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give the signals back to what handled them before the first `install`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ignore(self) -> None:
        """Let no signal in from now on, until the process ends."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def agree(self, ranks: "Ranks") -> signal.Signals | None:
        """The signal that any rank was given, the same on all of them.

        One that comes while the ranks exchange what they have noted counts at the next call.
        """
        asked = ranks.sums([int(self._noted == number) for number in SIGNALS])
        if any(asked):
            self.agreed = SIGNALS[asked.index(max(asked))]
        return self.agreed

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Schedulers repeat themselves; who presses Ctrl-C twice does not want to wait, for another rank, say.
        if number == self._noted == signal.SIGINT:
            raise KeyboardInterrupt
        if self._noted is None:
            self._noted = signal.Signals(number)
            if is_first():
                # Not by print, which a signal may have interrupted.
                again = "; once more ends without saving" if number == signal.SIGINT else ""
                os.write(2, f"{self._noted.name}: saving at the next step{again}\n".encode())


@contextlib.contextmanager
def children_deaf() -> Iterator[None]:
    """Processes started inside ignore the signals: schedulers send them to a whole group, and the parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # Starting the tracker of shared memory, which the first process would do, lets SIGTERM and SIGINT in again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

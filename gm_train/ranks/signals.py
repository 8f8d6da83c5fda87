"""Signals that ask a run to leave. They set a flag; the training then saves at its next step and ends."""

import atexit
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from gm_train.ranks.launch_local import SIGNALS, is_first

if TYPE_CHECKING:  # importing it imports torch, which takes seconds; signals must be caught earlier
    from gm_train.ranks.ranks import Ranks


class Leaving:
    """Catches SIGTERM, SIGUSR1 and SIGINT from `install` to `restore`.

    Attributes:
        agreed: the signal on which all ranks leave; None as long as no rank has got one.
    """

    def __init__(self) -> None:
        self.agreed: signal.Signals | None = None
        self._noted: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on. Call it again if other code, such as Lightning, has replaced the handlers."""
        for number in SIGNALS:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Restore the handlers that were set before the first `install`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ignore(self) -> None:
        """Ignore the signals until the process ends."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def agree(self, ranks: "Ranks") -> signal.Signals | None:
        """Return the signal that some rank has got, the same on all ranks; None if none has. All ranks must call it.

        A signal that comes during this exchange counts at the next call.
        """
        asked = ranks.sums([int(self._noted == number) for number in SIGNALS])
        if any(asked):
            self.agreed = SIGNALS[asked.index(max(asked))]
        return self.agreed

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C ends at once: the user does not want to wait, say for another rank. Schedulers may send the
        # other signals several times.
        if number == self._noted == signal.SIGINT:
            raise KeyboardInterrupt
        if self._noted is None:
            self._noted = signal.Signals(number)
            if is_first():
                # os.write, because the signal may have interrupted a print, which cannot be entered twice.
                again = "; press Ctrl-C again to end without saving" if number == signal.SIGINT else ""
                os.write(2, f"{self._noted.name}: saving at the next step{again}\n".encode())


@contextlib.contextmanager
def children_deaf() -> Iterator[None]:
    """Let processes that are started inside ignore the signals.

    Schedulers send signals to the whole process group; the parent alone decides what to do. At its own exit it kills
    those that are left: multiprocessing would ask them by SIGTERM, and wait for them forever.
    """
    earlier = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # Starting multiprocessing's resource tracker unblocks SIGTERM and SIGINT. The first process would start it, so
        # it is started here, and the signals are blocked again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _deaf.update(set(multiprocessing.active_children()) - earlier)


_deaf: "WeakSet[BaseProcess]" = WeakSet()


@atexit.register  # later than multiprocessing's own, and so called before it
def _kill_deaf() -> None:
    for child in list(_deaf):
        child.kill()

"""Peak resident memory of this process and of those that it starts."""

import os
import threading
from types import TracebackType

from data_shards.workers import proc

_EVERY_S = 0.05


class Footprint:
    """While it is entered, the most resident memory that any process had: this one, and the largest of its children.

    The system keeps the peak of each process; a child is asked again and again until it ends. What a process had before
    counts as well, so that a fresh one is wanted. Where the system does not tell, both are None.

    Attributes:
        own_peak, child_peak: bytes; of no children, 0.
    """

    own_peak: int | None = None
    child_peak: int | None = None

    def __enter__(self) -> "Footprint":
        self.child_peak = None if self.own() is None else 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.own_peak = self.own()

    def _watch(self) -> None:
        while self.child_peak is not None and not self._done.wait(_EVERY_S):
            for child in proc.descendants(os.getpid()):
                self.child_peak = max(self.child_peak, proc.memory("VmHWM", child) or 0)

    @staticmethod
    def own() -> int | None:
        """Most resident bytes of this process so far."""
        return proc.memory("VmHWM")

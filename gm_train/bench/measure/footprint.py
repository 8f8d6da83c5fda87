"""Peak resident memory of this process and of the processes that it starts."""

import os
import threading
from types import TracebackType

from data_shards.workers import proc

_EVERY_S = 0.05


class Footprint:
    """A context that records the peak resident memory of this process and of its largest child.

    The system keeps the peak of each process; a thread polls those of children, since they vanish with the process.
    Memory that a process used before also counts: use a fresh process.

    Attributes:
        own_peak, child_peak: bytes; 0 without children; both None where the system does not report memory.
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
        """Return the most resident bytes of this process so far, or None if the system does not report them."""
        return proc.memory("VmHWM")

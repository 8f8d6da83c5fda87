"""Peak resident memory of this process and of those that it starts."""

import os
import threading
from pathlib import Path
from types import TracebackType

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
            for child in _children(os.getpid()):
                self.child_peak = max(self.child_peak, _peak(child) or 0)

    @staticmethod
    def own() -> int | None:
        """Most resident bytes of this process so far."""
        return _peak(os.getpid())


def _peak(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # ended, or another system
        return None
    line = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) << 10


def _children(pid: int) -> list[int]:
    """Processes that this one has started, and theirs."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                # The name of the program stands in brackets and may hold anything.
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: list[int] = []
    new = [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found

"""Read what Linux reports about processes and the processor in `/proc`; see proc(5).

Other systems have no `/proc`, and a process may end at any moment: about such a process, functions return None or an
empty result.
"""

import platform
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def processes() -> list[int]:
    """The ids of all processes."""
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()] if _PROC.is_dir() else []


def status(pid: int | str = "self") -> dict[str, str]:
    """The fields of a process's `status` file by name, such as `VmHWM`, `PPid` or `State`."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def memory(field: str, pid: int | str = "self") -> int | None:
    """`VmRSS` (resident memory now) or `VmHWM` (its peak so far) of a process, in bytes."""
    kilobytes = status(pid).get(field)
    return None if kilobytes is None else int(kilobytes.split()[0]) << 10


def forget_peak() -> None:
    """Set this process's `VmHWM` to its `VmRSS`, where there is a `/proc`.

    Raises:
        OSError: the system does not allow it.
    """
    clear = _PROC / "self" / "clear_refs"
    if clear.exists():
        clear.write_text("5")


def words(pid: int, file: str) -> list[str]:
    """The entries of a process's `environ` or `cmdline`; an empty list for a zombie."""
    try:
        return (_PROC / str(pid) / file).read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and their descendants."""
    parents = {}
    for child in processes():
        with suppress(OSError):  # it has ended
            # The program's name stands in brackets and may hold anything.
            parents[child] = int((_PROC / str(child) / "stat").read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    new = [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def processor_name() -> str:
    """The model name of the processor."""
    with suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

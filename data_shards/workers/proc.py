"""Read what Linux tells of processes and of the processor, in `/proc`; see proc(5).

Other systems have no `/proc`, and a process may end at any moment: each function then returns None or nothing.
"""

import platform
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def processes() -> list[int]:
    """The numbers of all processes."""
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()] if _PROC.is_dir() else []


def status(pid: int | str = "self") -> dict[str, str]:
    """The fields of a process's `status` by their names, such as `VmHWM`, `PPid` or `State`."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def memory(field: str, pid: int | str = "self") -> int | None:
    """Bytes of `VmRSS` (resident now) or `VmHWM` (the most so far) of a process."""
    found = status(pid).get(field)
    return None if found is None else int(found.split()[0]) << 10


def forget_peak() -> None:
    """Set this process's `VmHWM` to its `VmRSS`."""
    with suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text("5")


def words(pid: int, file: str) -> list[str]:
    """The entries of a process's `environ` or `cmdline`; none of a zombie."""
    try:
        return (_PROC / str(pid) / file).read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    parents = {child: int(status(child).get("PPid", -1)) for child in processes()}
    found: list[int] = []
    new = [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def processor_name() -> str:
    """The processor's model."""
    with suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

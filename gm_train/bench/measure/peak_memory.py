"""Peak memory of a piece of work: resident memory of the process on a CPU, PyTorch's allocator on a GPU."""

import ctypes
import gc
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def settle() -> None:
    """Give back what is free, so that it does not count as in use."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _status(key: str) -> int | None:
    if not _STATUS.exists():
        return None
    line = next((line for line in _STATUS.read_text().splitlines() if line.startswith(key)), None)
    return None if line is None else int(line.split()[1]) << 10


class PeakMemory:
    """The most memory in use since the last `reset`, above what was in use when this object was made.

    Args:
        device: whose memory is meant.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        settle()
        self._base = self._now()

    def _now(self) -> int | None:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else _status("VmRSS:")

    def reset(self) -> None:
        """Forget the peak so far."""
        settle()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # sets VmHWM to VmRSS; see proc(5)

    def added(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _status("VmHWM:")
        return None if peak is None or self._base is None else peak - self._base

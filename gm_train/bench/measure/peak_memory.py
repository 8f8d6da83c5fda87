"""Peak memory of a piece of work: resident memory of the process on a CPU, PyTorch's allocator on a GPU."""

import ctypes
import gc

import torch

from data_shards.workers import proc


def settle() -> None:
    """Return free memory to the system, so that it does not count as in use."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


class PeakMemory:
    """The peak memory since the last `reset`, minus what was in use when this object was made.

    Args:
        device: whose memory is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        settle()
        self._base = self._now()

    def _now(self) -> int | None:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else proc.memory("VmRSS")

    def reset(self) -> None:
        """Forget the peak so far."""
        settle()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            proc.forget_peak()

    def added(self) -> int | None:
        """Return the added bytes, or None if the system does not report them."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = proc.memory("VmHWM")
        return None if peak is None or self._base is None else peak - self._base

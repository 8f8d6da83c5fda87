"""Keep the memory that a training step frees, for the next step."""

import ctypes

import torch

# Parameters of mallopt(3), from malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALL = 2**31 - 1


def keep_freed_memory(device: torch.device) -> None:
    """Let the C library keep what is freed, where it allocates the tensors: on a CPU, with the GNU C library.

    By default it gives large blocks back to the system, and the next step waits while the system clears them again. The
    process stays at its peak memory.
    """
    if device.type != "cpu":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _ALL)
        library.mallopt(_TRIM_THRESHOLD, _ALL)

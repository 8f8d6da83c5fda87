"""Keep the memory that a training step frees, for the next step."""

import ctypes
import os

import torch

# Parameters of mallopt(3), from malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
#: The user's own settings, which stay as they are.
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory(device: torch.device) -> bool:
    """Let the C library keep what is freed, where it allocates the tensors: on a CPU, with the GNU C library.

    By default it gives large blocks back to the system, and the next step waits while the system clears them again. The
    process stays at its peak memory. Nothing changes if the environment has settings of the library's allocator.

    Returns:
        Whether freed memory is kept.
    """
    if device.type != "cpu" or any(name in os.environ for name in SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    # No block comes from mmap, which gives it back at once, and the heap is never trimmed (-1 is the largest size).
    return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, -1))

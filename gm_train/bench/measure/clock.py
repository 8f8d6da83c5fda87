"""Time work on a device, from idle to idle."""

import time

import torch


class Clock:
    """A stopwatch that waits for the device to finish before it reads the time.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0.0

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def start(self) -> None:
        """Start timing."""
        self._start = self._now()

    def stop(self) -> float:
        """Return the seconds since `start`."""
        return self._now() - self._start

"""Numbers on their way from a device to the program, which does not wait for them until it needs them."""

import torch
from torch import Tensor


class LateNumbers:
    """A few numbers of a device, copied while it goes on computing.

    Args:
        values: of one dimension, of any floating type.
    """

    def __init__(self, values: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._values = values.clone()
            return
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._copied = torch.cuda.current_stream(values.device).record_event()

    def get(self) -> list[float]:
        """Return the numbers; on a GPU, wait until what was queued before the copy has been computed."""
        if self._copied is not None:
            self._copied.synchronize()
        return list(self._values.tolist())

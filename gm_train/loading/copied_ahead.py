"""Copy each micro-batch to the GPU while the one before it is computed."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from gm_train.objective.batches import MicroBatch


def copied_ahead(batches: Iterable[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Yield micro-batches on a device; on a GPU the next one is on its way when one is yielded.

    Without a GPU the batches are yielded as they are. An error in making a batch is raised in its place, after the
    batches before it.

    Args:
        batches: in the machine's memory.
        device: where they are used.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[MicroBatch, torch.cuda.Event] | None = None
    source = iter(batches)
    while True:
        batch: MicroBatch | None = None
        problem: Exception | None = None
        try:
            batch = next(source, None)
        except Exception as error:
            problem = error
        copied = None if batch is None else _copy(batch, device, stream)
        if waiting is not None:
            torch.cuda.current_stream(device).wait_event(waiting[1])
            yield waiting[0]
        if problem is not None:
            raise problem
        if copied is None:
            return
        waiting = copied


def _copy(batch: MicroBatch, device: torch.device, stream: torch.cuda.Stream) -> tuple[MicroBatch, torch.cuda.Event]:
    """Copy a batch from pinned memory on a stream of its own; return the copy, and the event of its end."""
    tensors = [f.name for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)]
    computing = torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        copies = {name: getattr(batch, name).pin_memory().to(device, non_blocking=True) for name in tensors}
    for tensor in copies.values():
        # Its memory is not given to a later copy before the computation on it has ended.
        tensor.record_stream(computing)
    return replace(batch, **copies), stream.record_event()

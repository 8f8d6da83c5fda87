"""DDP: whole parameters on every rank, gradients summed over the ranks."""

import contextlib
from collections.abc import Iterator

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from gm_train.ranks.ranks import Ranks
from gm_train.strategies.steps import Steps


class Ddp(Steps, DDPStrategy):
    """Whole parameters on every rank, gradients summed over the ranks."""

    def __init__(self, ranks: Ranks, clip: float) -> None:
        DDPStrategy.__init__(self, process_group_backend=ranks.backend(), gradient_as_bucket_view=True)

    def configure_ddp(self) -> None:
        """Wrap the model in DDP and fix the layout of its gradient buckets.

        DDP lays out the buckets anew after the first step of every start. That changes the order in which more than two
        ranks are summed, and with it the last bits of a resumed run. A backward pass of zeros makes DDP do this before
        the first step. Its order is that of a real pass: from the last parameter to the first.
        """
        super().configure_ddp()
        assert isinstance(self.model, nn.parallel.DistributedDataParallel)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.reducer.prepare_for_backward([])
        torch.stack([parameter.sum() * 0 for parameter in parameters]).sum().backward()  # type: ignore[no-untyped-call]
        self.model.reducer._rebuild_buckets()
        for parameter in parameters:
            parameter.grad = None

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Sum gradients over the ranks in the last pass of a step only."""
        assert isinstance(self.model, nn.parallel.DistributedDataParallel)
        with contextlib.nullcontext() if last else self.model.no_sync():
            yield

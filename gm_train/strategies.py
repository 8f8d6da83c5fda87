"""How a step is spread over ranks: one process, DDP or FSDP2 (ZeRO is in `zero.py`), on Lightning's strategies.

Parallelism is applied to the model and is not part of it. Beyond what Lightning asks of a strategy, a step asks for
what `Steps` names: gradients that stay on the rank until the step's last micro-batch, a clipped update that leaves the
weights alone where the gradient is not finite, and how weights and optimizer state are saved and loaded.
"""

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from data_shards.errors import DataError
from gm_train.checkpoint import BY_NAME, Checkpoint
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks import Ranks
from gm_train.state import load_by_name, save_by_name

#: Strategies by DeepSpeed; a checkpoint names its form by them.
ZERO = ("zero2", "zero3")
#: Strategies that need a process group even on one rank.
SHARDED = ("fsdp2", *ZERO)
#: Weights, gradients and AdamW's two moments in float32.
_BYTES_PER_PARAMETER = 16
#: Share of a device's memory that these may take on every rank before `auto` shards them. Sharded layers are gathered
#: again in every pass: between nodes that costs more, so more memory is given to avoid it.
_WHOLE_ON_ONE_NODE, _WHOLE_ON_MANY = 0.4, 0.6


class Steps:
    """What a training step and a checkpoint ask of a strategy; here as it is where every rank holds named tensors.

    Attributes:
        form: how `save` writes the state, as a checkpoint names it.
    """

    form = BY_NAME

    def shard(self, model: GeneMamba) -> None:
        """Spread the model's parameters over the ranks, before its optimizer is built."""

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """A forward and backward pass inside adds to the gradients; the last one of a step sums them over ranks."""
        yield

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> float:
        """Clip the gradient to the norm `clip` and step the optimizer, unless the gradient is not finite.

        Returns:
            The norm of the whole gradient before clipping.
        """
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        value = float(norm)
        if math.isfinite(value):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value

    def is_finite(self, model: nn.Module) -> bool:
        """Whether the parameters that this rank holds are finite."""
        held = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
        return all(bool(part.isfinite().all()) for part in held)

    def save(self, folder: Path, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Write this rank's part of weights and optimizer state into a folder; all ranks together."""
        save_by_name(folder, model, optimizer)

    def load(self, checkpoint: Checkpoint, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
        """Load weights and optimizer state in place; all ranks together. `refuse_other_form` tells what can be read."""
        load_by_name(checkpoint.state, model, optimizer)


class SingleProcess(Steps, SingleDeviceStrategy):
    """One rank, without a process group."""


class Ddp(Steps, DDPStrategy):
    """Whole parameters on every rank, gradients summed over the ranks."""

    def configure_ddp(self) -> None:
        """Wrap the model, and settle the layout of its buckets.

        DDP lays them out anew after the first step of every start. That changes the order in which more than two ranks
        are summed, and so the last bits of a run that is resumed. A backward pass of zeros brings it forward, in the
        order of a real one: from the last parameter to the first.
        """
        super().configure_ddp()
        assert isinstance(self.model, nn.parallel.DistributedDataParallel)
        parameters = list(self.model.parameters())
        self.model.reducer.prepare_for_backward([])
        torch.stack([parameter.sum() * 0 for parameter in parameters]).sum().backward()  # type: ignore[no-untyped-call]
        self.model.reducer._rebuild_buckets()
        for parameter in parameters:
            parameter.grad = None

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        assert isinstance(self.model, nn.parallel.DistributedDataParallel)
        with contextlib.nullcontext() if last else self.model.no_sync():
            yield


class Fsdp2(Steps, ModelParallelStrategy):
    """Parameters, gradients and optimizer state sharded over all ranks; a layer is gathered while it computes."""

    def __init__(self, ranks: Ranks, backend: str) -> None:
        # The mesh is set here because "auto" would split single tensors over the GPUs of a node.
        super().__init__(data_parallel_size=ranks.world_size, tensor_parallel_size=1, process_group_backend=backend)

    def shard(self, model: GeneMamba) -> None:
        mesh: DeviceMesh = self.device_mesh["data_parallel"]
        for layer in model.stack.layers:
            fully_shard(layer, mesh=mesh)
        if len(model.stack.aggregations) > 1:
            for aggregation in model.stack.aggregations:
                fully_shard(aggregation, mesh=mesh)
        # A gate that all layers share stays in the root's group, gathered once a pass, not once a layer.
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "language_loss")

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(last)
        yield


class Joined(ClusterEnvironment):
    """Tells Lightning of ranks that run already and have met."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"  # the process group stands

    @property
    def main_port(self) -> int:
        return 0

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._ranks.world_size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._ranks.global_rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._ranks.local_rank

    def node_rank(self) -> int:
        return self._ranks.node_rank


def choose(strategy: str, n_parameters: int, ranks: Ranks, memory: int) -> tuple[str, str]:
    """The strategy to use, and why.

    Args:
        strategy: `trainer.strategy`.
        n_parameters: of the model.
        ranks: this process among the others.
        memory: bytes of the device; of the machine, for each rank on it, on a CPU.

    Returns:
        `single`, `ddp`, `fsdp2`, `zero2` or `zero3`, and a line for people.
    """
    if strategy == "ddp" and ranks.world_size == 1:
        return "single", "one rank, nothing to spread"
    if strategy != "auto":
        return strategy, "as configured"
    if ranks.world_size == 1:
        return "single", "auto: one rank, nothing to spread"
    state = _BYTES_PER_PARAMETER * n_parameters
    limit = _WHOLE_ON_ONE_NODE if ranks.n_nodes == 1 else _WHOLE_ON_MANY
    fits = state <= limit * memory
    return "ddp" if fits else "fsdp2", (
        f"auto: weights, gradients and moments take {state / 1e9:.2f} GB a rank, "
        f"{'at most' if fits else 'more than'} {limit:.0%} of its {memory / 1e9:.0f} GB "
        f"on {ranks.n_nodes} node{'s' if ranks.n_nodes > 1 else ''}"
    )


def refuse_without_deepspeed(what: str) -> None:
    """Raise DataError, with the line that installs it, if DeepSpeed is missing."""
    if importlib.util.find_spec("deepspeed") is None:
        raise DataError(f"{what} needs DeepSpeed, which is not installed: pip install 'gm-train[deepspeed]'")


def device_memory(ranks: Ranks) -> int:
    """Bytes of this rank's GPU, or its share of the machine's memory."""
    device = ranks.device()
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.local_size


def build_strategy(name: str, ranks: Ranks, clip: float) -> Strategy:
    """Lightning's strategy for a name that `choose` returned.

    Args:
        name: `single`, `ddp`, `fsdp2`, `zero2` or `zero3`.
        ranks: this process among the others.
        clip: largest norm of the gradient, for engines that clip themselves.
    """
    device = ranks.device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if name == "single":
        return SingleProcess(device)
    if name == "fsdp2":
        return Fsdp2(ranks, backend)
    if name == "ddp":
        return Ddp(process_group_backend=backend, gradient_as_bucket_view=True)
    from gm_train.zero import Zero

    strategy: Strategy = Zero(2 if name == "zero2" else 3, ranks, backend, clip)
    return strategy

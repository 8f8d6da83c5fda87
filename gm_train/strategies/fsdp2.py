"""FSDP2: parameters, gradients and optimizer state sharded over all ranks."""

import contextlib
from collections.abc import Iterator

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.steps import Steps


class Fsdp2(Steps, ModelParallelStrategy):
    """Parameters, gradients and optimizer state sharded over all ranks; a layer is gathered while it computes."""

    shards_weights = True

    def __init__(self, ranks: Ranks, clip: float) -> None:
        # The mesh is set here because "auto" would split single tensors over the GPUs of a node (tensor parallelism).
        ModelParallelStrategy.__init__(
            self, data_parallel_size=ranks.world_size, tensor_parallel_size=1, process_group_backend=ranks.backend()
        )

    def shard(self, model: GeneMamba) -> None:
        """Shard each layer, each of several aggregations, and the rest of the model as a group of its own."""
        shard_layers(model, self.device_mesh["data_parallel"])

    @contextlib.contextmanager
    def accumulating(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Reduce gradients over the ranks in the last pass of a step only."""
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(last)
        yield


def shard_layers(model: GeneMamba, mesh: DeviceMesh) -> None:
    """Shard each layer, each of several aggregations, and the rest of the model as a group of its own.

    Args:
        model: whole; its parameters become sharded in place.
        mesh: of one dimension, over all ranks.
    """
    for layer in model.stack.layers:
        fully_shard(layer, mesh=mesh)
    if len(model.stack.aggregations) > 1:
        for aggregation in model.stack.aggregations:
            fully_shard(aggregation, mesh=mesh)
    # A gate that all layers share stays in the root's group: it is gathered once a pass, not once a layer.
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "language_loss")
    register_fsdp_forward_method(model, "missing_loss")
    register_fsdp_forward_method(model, "class_logits")

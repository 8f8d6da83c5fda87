"""How many graphs a compiled block has under DDP; module functions, so that another process can call them."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gm_train.config.schema import ModelConfig, TrainerConfig
from gm_train.model import compile as home
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import joined, launched


def count_graphs(answers: Any, d_model: int) -> None:
    """Train one step of a model of one compiled block under DDP; send the number of graphs and the gradients' bytes.

    Args:
        answers: a queue for (number of graphs, bytes of the block's parameters).
        d_model: of the model.
    """
    ranks = launched()
    assert ranks is not None
    torch.set_num_threads(1)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    real = torch.compile
    home.torch.compile = lambda function, **options: real(function, backend=backend, **options)  # type: ignore[attr-defined]
    with joined(ranks, alone=False):
        model = GeneMamba(ModelConfig(d_model=d_model, n_layers=1, chunk=16), 30)
        home.prepare_blocks(model, TrainerConfig(compile=True))
        wrapped = DistributedDataParallel(_States(model))
        ids = torch.randint(2, 30, (1, 32))
        wrapped(ids, torch.ones_like(ids)).sum().backward()
        block = model.stack.layers[0]
        answers.put((len(graphs), sum(4 * parameter.numel() for parameter in block.parameters())))


class _States(nn.Module):
    """A model whose output depends on all of its parameters."""

    def __init__(self, model: GeneMamba) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
        return self.model.logits(self.model(input_ids, segment))

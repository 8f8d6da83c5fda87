"""The classifier on top of a cell's embedding."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """Linear layers with ReLU between them: from a cell's embedding to a logit for each class.

    Args:
        d_model: width of the embedding.
        class_weights: weight of each class in the loss; their number is the number of classes.
        n_layers: number of linear layers.
        width: width between the layers.
    """

    class_weights: Tensor

    def __init__(self, d_model: int, class_weights: Sequence[float], n_layers: int = 1, width: int = 512) -> None:
        super().__init__()
        sizes = [d_model, *[width] * (n_layers - 1), len(class_weights)]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        # They follow from the classes, which the checkpoint holds.
        self.register_buffer("class_weights", torch.tensor(class_weights), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Compute logits (n_cells, n_classes) of embeddings (n_cells, d_model)."""
        for number, layer in enumerate(self.layers):
            embeddings = layer(embeddings if number == 0 else F.relu(embeddings))
        return embeddings

"""GeneMamba: compute states from the tokens of packed cells, and logits and cell embeddings from states."""

from typing import cast

import torch
from torch import Tensor, nn

from gm_train.config.parts import load_part
from gm_train.config.schema import ModelConfig
from gm_train.model.classifier import Classifier
from gm_train.model.layer_stack import LayerStack
from gm_train.model.norm import RMSNorm
from gm_train.model.output_layer import OutputLayer
from gm_train.model.pooling import POOLS


class GeneMamba(nn.Module):
    """A stack of Mamba-2 layers over the ranked genes of cells (arXiv 2504.16956).

    Several cells may share a row. No information passes between them, nor to or from the unused tail: a cell's states
    are the same alone, padded to any length or packed with others.

    Args:
        config: sizes and variants.
        vocabulary_size: number of tokens, special ones included.

    Attributes:
        classifier: predicts a label from a cell's embedding; None unless it was set.

    Raises:
        ValueError: a variant is unknown, or head_dim does not divide expand * d_model.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, config.d_model)
        self.stack: LayerStack = load_part("model.arch", config.arch)(config)
        self.norm = RMSNorm(config.d_model)
        self.output = OutputLayer(config.d_model, vocabulary_size, config.tie_output)
        self.classifier: Classifier | None = None

    def forward(self, input_ids: Tensor, segment: Tensor) -> Tensor:
        """Compute the states of packed cells.

        Args:
            input_ids: int64 (batch, length), `<pad>` on the unused tail.
            segment: integer (batch, length), 0 on the unused tail, 1..n on the row's cells, each contiguous.

        Returns:
            States after the final norm, (batch, length, d_model). Those of the tail are finite but meaningless.
        """
        return cast(Tensor, self.norm(self.stack(self.embedding(input_ids), segment)))

    def logits(self, states: Tensor) -> Tensor:
        """Compute logits (..., vocabulary_size) of states (..., d_model).

        The output layer costs as much as several layers of the stack: pass only the positions to predict.
        """
        return cast(Tensor, self.output(states, self.embedding.weight))

    def language_loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Sum the cross-entropy in nats, a scalar, of states (n, d_model) that predict targets, int64 (n,).

        The logits are never all in memory at once.
        """
        return cast(Tensor, self.output(states, self.embedding.weight, targets))

    def missing_loss(self, states: Tensor, shown: Tensor, missing: Tensor) -> Tensor:
        """Sum the cross-entropy in nats, a scalar, of states (n, d_model) that predict sets of genes.

        Args:
            states: (n, d_model).
            shown: bool (n, vocabulary_size), tokens that get no probability.
            missing: bool (n, vocabulary_size), the tokens to predict, whose terms are averaged; a row without any
                counts for nothing.
        """
        return cast(Tensor, self.output(states, self.embedding.weight, missing, shown))

    def class_logits(self, embeddings: Tensor) -> Tensor:
        """Compute logits of the classes, float32 (n_cells, n_classes), with the classifier.

        Args:
            embeddings: float32 (n_cells, d_model), from `cell_embeddings` or `pool_cells`.
        """
        assert self.classifier is not None
        with torch.autocast(embeddings.device.type, enabled=False):
            return cast(Tensor, self.classifier(embeddings))


def cell_embeddings(states: Tensor, segment: Tensor, pool: str = "mean") -> Tensor:
    """Pool the final states over the tokens of each cell.

    Args:
        states: (batch, length, d_model).
        segment: integer (batch, length), 0 on the unused tail.
        pool: one of `POOLS`.

    Returns:
        (n_cells, d_model), in the type of `states` but at least float32: the cells of row 0 in the order of their
        segment numbers, then those of row 1, and so on. Segment numbers that a row does not use are left out.
    """
    n = int(segment.max())
    is_used = (segment[:, None, :] == torch.arange(1, n + 1, device=segment.device)[:, None]).any(-1)
    return pool_cells(states, segment, n, pool)[is_used]


def pool_cells(states: Tensor, segment: Tensor, n: int, pool: str = "mean") -> Tensor:
    """As `cell_embeddings`, with a place for each segment number: (batch, n, d_model).

    Args:
        states: (batch, length, d_model).
        segment: integer (batch, length), 0 on the unused tail.
        n: the largest segment number, or more. The vectors of numbers that a row does not use have no meaning.
        pool: one of `POOLS`.
    """
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    numbers = torch.arange(1, n + 1, device=segment.device)
    member = segment[:, None, :] == numbers[:, None]  # (batch, numbers, length)
    with torch.autocast(states.device.type, enabled=False):
        return POOLS[pool](states, member)

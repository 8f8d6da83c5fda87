"""Cells of random genes, and models whose influence of one gene on another is written down."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.model.genemamba import GeneMamba


class KnownInfluence(nn.Module):
    """A model in which each gene that is seen adds its row of `effects` to the logits of all genes.

    The states of a cell are the numbers of each gene that it shows, at every position, so that masked and missing genes
    are read from them alike. Pooled states are the same, since they are a mean.

    Args:
        effects: float (vocabulary_size, vocabulary_size), of the gene in the row on the gene in the column.
    """

    def __init__(self, effects: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self.effects = torch.from_numpy(effects).float()
        self.embedding = nn.Embedding.from_pretrained(torch.eye(len(effects)))

    def forward(self, input_ids: Tensor, segment: Tensor) -> Tensor:
        """States, float32 (batch, length, vocabulary_size)."""
        seen = (self.embedding(input_ids) * (segment > 0)[..., None]).sum(1)
        seen[:, :FIRST_GENE] = 0
        return seen[:, None].expand(-1, input_ids.shape[1], -1)

    def logits(self, states: Tensor) -> Tensor:
        """Logits, float32 (..., vocabulary_size)."""
        return states @ self.effects


def known_influence(pairs: npt.NDArray[np.int64], vocabulary_size: int, reverse: bool = False) -> GeneMamba:
    """A model in which the first gene of each pair does more to the second one than the other way round.

    Args:
        pairs: int64 (n, 2), tokens.
        vocabulary_size: number of tokens.
        reverse: whether the second gene does more to the first one.
    """
    a, b = pairs.T[::-1] if reverse else pairs.T
    effects = np.zeros((vocabulary_size, vocabulary_size))
    effects[a, b] = np.where(np.arange(len(pairs)) % 3, 2.0, -2.0)
    effects[b, a] = 0.5
    return KnownInfluence(effects)  # type: ignore[return-value]

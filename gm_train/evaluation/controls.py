"""Frequency controls of the masked-gene scores: what can be guessed about a hidden gene without any context.

Each is fitted on the tokens of training cells, in the same kind of ranks as the cells it is scored on, and leaves out
what the cell shows already: a visible gene is never the hidden one.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.vocabulary import FIRST_GENE
from gm_train.evaluation.masked import MaskedCells
from gm_train.evaluation.ragged import Ragged

RANK_BINS = 32
#: Weight, in tokens, of the corpus frequency in the table of each rank bin.
BIN_SMOOTHING = 300.0

F64 = npt.NDArray[np.float64]
Answer = tuple[npt.NDArray[np.int64], Tensor]


def corpus_frequency(train: Ragged, vocabulary_size: int) -> F64:
    """Share of each token among the training tokens, one added to every gene's count: float64 (vocabulary,)."""
    counts = np.bincount(train.tokens, minlength=vocabulary_size) + 1.0
    counts[:FIRST_GENE] = 0.0
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def log_share(shares: F64) -> F64:
    """Logarithm, minus infinity at zero (same shape)."""
    with np.errstate(divide="ignore"):
        return np.log(shares)


def without_visible(visible: npt.NDArray[np.int64], log_shares: F64) -> Tensor:
    """Log probabilities, (n, vocabulary), from log shares of that shape, once the visible tokens are left out."""
    shares = torch.from_numpy(log_shares.astype(np.float32))
    shares[:, torch.from_numpy(visible[visible >= FIRST_GENE])] = -torch.inf
    return torch.log_softmax(shares, dim=-1)


class Frequency:
    """Corpus frequency, the cell's visible genes left out."""

    def __init__(self, train: Ragged, vocabulary_size: int) -> None:
        self.log_shares = log_share(corpus_frequency(train, vocabulary_size))[None, :]

    def __call__(self, masked: MaskedCells) -> Iterator[Answer]:
        for span, hidden in masked.spans():
            yield hidden, without_visible(masked.visible[span], self.log_shares).expand(len(hidden), -1)


def rank_bins(length: int) -> npt.NDArray[np.int64]:
    """The bin of every position of a cell, by its rank's share of the cell's length: int64 (length,)."""
    return np.arange(length) * RANK_BINS // max(length, 1)


class FrequencyByRank:
    """Frequency among the training tokens at a like rank, the cell's visible genes left out."""

    def __init__(self, train: Ragged, vocabulary_size: int) -> None:
        bins = np.concatenate([rank_bins(length) for length in train.lengths])
        flat = np.bincount(bins * vocabulary_size + train.tokens, minlength=RANK_BINS * vocabulary_size)
        prior = BIN_SMOOTHING * corpus_frequency(train, vocabulary_size)
        self.log_shares = log_share(flat.reshape(RANK_BINS, vocabulary_size) + prior)

    def __call__(self, masked: MaskedCells) -> Iterator[Answer]:
        for span, hidden in masked.spans():
            bins = rank_bins(span.stop - span.start)[hidden - span.start]
            yield hidden, without_visible(masked.visible[span], self.log_shares[bins])

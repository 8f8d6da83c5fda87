"""Frequency controls of the masked-gene scores: how well a hidden gene can be guessed without context.

Each control is fitted on the tokens of training cells, with the same kind of ranks as the cells it is scored on. It
never guesses a visible gene: a cell has each gene once.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.masked.masked_genes import MaskedCells

#: Bins of the relative rank (rank divided by the cell's length).
RANK_BINS = 32
#: Weight of the corpus frequency in the table of each rank bin, in tokens per gene of the vocabulary.
BIN_SMOOTHING = 1.0

#: Log probabilities yielded at once, about. Many small operations would be slow when threads compete for the cores.
_GROUP = 1 << 22

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Answer = tuple[I64, Tensor]


def corpus_frequency(train: Ragged, vocabulary_size: int) -> F64:
    """Share of each token among the training tokens, after adding one to each gene's count: float64 (vocabulary,)."""
    counts = np.bincount(train.tokens, minlength=vocabulary_size) + 1.0
    counts[:FIRST_GENE] = 0.0
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def log_share(shares: F64) -> F32:
    """Logarithm, with log(0) = minus infinity: float32 (same shape)."""
    with np.errstate(divide="ignore"):
        return np.log(shares).astype(np.float32)


def answer(masked: MaskedCells, log_shares_of: Callable[[slice, I64], F32]) -> Iterator[Answer]:
    """Predict every hidden position from log shares of the genes, without the cell's visible genes.

    Args:
        masked: the cells.
        log_shares_of: takes a cell's slice of the tokens and its hidden positions, int64 (n,). It returns log shares,
            float32 (n, vocabulary), up to a constant per row; the array is modified.

    Yields:
        Positions, int64 (n,), and log probabilities, float32 (n, vocabulary), of several cells at once.
    """
    spans = list(masked.spans())
    while spans:
        positions, shares, size = [], [], 0
        while spans and size < _GROUP:
            span, hidden = spans.pop()
            rows = log_shares_of(span, hidden)
            visible = masked.visible[span]
            rows[:, visible[visible >= FIRST_GENE]] = -np.inf
            positions.append(hidden)
            shares.append(rows)
            size += rows.size
        yield np.concatenate(positions), torch.log_softmax(torch.from_numpy(np.concatenate(shares)), dim=-1)


class Frequency:
    """Predicts by corpus frequency, without the cell's visible genes."""

    def __init__(self, train: Ragged, vocabulary_size: int) -> None:
        self.log_shares = log_share(corpus_frequency(train, vocabulary_size))

    def __call__(self, masked: MaskedCells) -> Iterator[Answer]:
        """Yield positions and log probabilities, as `answer` does."""
        return answer(masked, lambda span, hidden: np.tile(self.log_shares, (len(hidden), 1)))


def rank_bins(length: int) -> I64:
    """The bin of each position of a cell, by its rank divided by the cell's length: int64 (length,)."""
    return np.arange(length) * RANK_BINS // max(length, 1)


class FrequencyByRank:
    """Predicts by frequency among the training tokens of the same rank bin, without the cell's visible genes."""

    def __init__(self, train: Ragged, vocabulary_size: int) -> None:
        bins = np.concatenate([rank_bins(length) for length in train.lengths])
        flat = np.bincount(bins * vocabulary_size + train.tokens, minlength=RANK_BINS * vocabulary_size)
        prior = BIN_SMOOTHING * vocabulary_size * corpus_frequency(train, vocabulary_size)
        self.log_shares = log_share(flat.reshape(RANK_BINS, vocabulary_size) + prior)

    def __call__(self, masked: MaskedCells) -> Iterator[Answer]:
        """Yield positions and log probabilities, as `answer` does."""

        def log_shares_of(span: slice, hidden: I64) -> F32:
            bins = rank_bins(span.stop - span.start)[hidden - span.start]
            return np.asarray(self.log_shares[bins], dtype=np.float32)

        return answer(masked, log_shares_of)

"""The order control: a count table of the genes found next to the visible neighbours of a hidden gene, no network.

Half of a cell's counts are 1, and genes with equal counts are in the fixed order of their medians. So the neighbours
almost determine a hidden gene. Only what a model achieves beyond this table shows knowledge about cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_shards.tokens.vocabulary import MASK, PAD
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.masked.frequency_controls import F32, F64, I64, Answer, answer, corpus_frequency, log_share
from gm_train.evaluation.masked.masked_genes import MaskedCells, mask_cells, score_masked
from gm_train.objective.cell_keys import cell_keys

#: Distance of each neighbour that is used, and its weight relative to the nearest ones.
NEIGHBOURS = {-2: 0.6, -1: 1.0, 1: 1.0, 2: 0.6}
#: Settings that the control is tuned over. Strength 0 is corpus frequency.
SMOOTHINGS = (3.0, 10.0, 30.0, 100.0)
STRENGTHS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
#: Hidden positions that the settings are compared on, at most.
TUNING_POSITIONS = 2_000


def neighbour_tokens(shown: npt.NDArray[np.integer], span: slice, positions: I64, distance: int) -> I64:
    """The tokens `distance` away from positions of one cell: int64 (n,); `PAD` beyond the cell's ends.

    Args:
        shown: tokens of all cells, (n_tokens,).
        span: the cell's slice of them.
        positions: int64 (n,), within the span, counted from the start of `shown`.
        distance: negative before the position, positive after it.
    """
    at = positions + distance
    inside = (at >= span.start) & (at < span.stop)
    return np.where(inside, shown[np.where(inside, at, span.start)], PAD).astype(np.int64)


def count_pairs(train: Ragged, vocabulary_size: int, distance: int) -> scipy.sparse.csr_matrix:
    """Count pairs, C(n, g): how often gene g has n as its neighbour `distance` away; float32 (vocabulary, vocabulary).

    Beyond an end of the cell the neighbour is `PAD`.

    Args:
        train: training cells.
        vocabulary_size: number of tokens, specials included.
        distance: of the neighbour: negative before the gene, positive after it.
    """
    tokens = train.tokens.astype(np.int64)
    lengths = train.lengths
    at = np.arange(len(tokens)) + distance
    inside = (at >= np.repeat(train.indptr[:-1], lengths)) & (at < np.repeat(train.indptr[1:], lengths))
    neighbour = np.where(inside, tokens[np.where(inside, at, 0)], PAD)
    ones = np.ones(len(tokens), dtype=np.float32)
    # tocsr adds up the pairs that occur more than once.
    return scipy.sparse.coo_matrix((ones, (neighbour, tokens)), shape=(vocabulary_size, vocabulary_size)).tocsr()


@dataclass(frozen=True)
class NeighbourTable:
    """Corpus frequency and pair counts of some cells.

    Attributes:
        frequency: float64 (vocabulary,), from `corpus_frequency`.
        pairs: distance of `NEIGHBOURS` to counts, from `count_pairs`.
    """

    frequency: F64
    pairs: dict[int, scipy.sparse.csr_matrix]

    @classmethod
    def count(cls, train: Ragged, vocabulary_size: int) -> "NeighbourTable":
        """Count the tokens and pairs of training cells."""
        pairs = {distance: count_pairs(train, vocabulary_size, distance) for distance in NEIGHBOURS}
        return cls(corpus_frequency(train, vocabulary_size), pairs)

    def gains(self, smoothing: float) -> scipy.sparse.csr_matrix:
        """log(1 + C(n, g) / (smoothing * f(g))), the tables of all distances stacked.

        Returns:
            float32 (distances * vocabulary, vocabulary), as sparse as the counts.
        """
        stacked = scipy.sparse.vstack([self.pairs[distance] for distance in NEIGHBOURS]).tocsr()
        stacked.data = np.log1p(stacked.data / (smoothing * self.frequency[stacked.indices])).astype(np.float32)
        return stacked

    def predict(self, masked: MaskedCells, gains: scipy.sparse.csr_matrix, strength: float) -> Iterator[Answer]:
        """Predict the hidden positions: frequency times the gain of each visible neighbour, without visible genes.

        Args:
            masked: the cells.
            gains: from `gains`.
            strength: factor of the gains' logarithms.

        Yields:
            Positions and log probabilities, as `answer` does.
        """
        vocabulary_size = len(self.frequency)
        log_shares = log_share(self.frequency)

        def log_shares_of(span: slice, hidden: I64) -> F32:
            rows, columns, weights = [], [], []
            for table, (distance, weight) in enumerate(NEIGHBOURS.items()):
                neighbour = neighbour_tokens(masked.visible, span, hidden, distance)
                known = np.flatnonzero(neighbour != MASK)
                rows.append(known)
                columns.append(neighbour[known] + table * vocabulary_size)
                weights.append(np.full(len(known), strength * weight, dtype=np.float32))
            selection = scipy.sparse.csr_matrix(
                (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))),
                shape=(len(hidden), gains.shape[0]),
            )
            return np.asarray((selection @ gains).toarray() + log_shares, dtype=np.float32)

        return answer(masked, log_shares_of)


class OrderControl:
    """The tuned neighbour table, as a predictor.

    For a hidden position whose neighbour at distance d is n, gene g has

        log P(g) = log f(g) + strength * sum over d of w_d * log(1 + C_d(n, g) / (smoothing * f(g))) + constant

    where f is the corpus frequency, and C_d(n, g) counts how often g had n at distance d in training cells. This is a
    log-linear mixture of f and every P_d(g | n) = (C_d(n, g) + smoothing * f(g)) / (C_d(n) + smoothing). Hidden
    neighbours have no term.

    Attributes:
        smoothing, strength: the settings with the least cross-entropy on every fifth training cell, by tables of the
            other cells.
    """

    def __init__(self, train: Ragged, vocabulary_size: int, mask_rate: float) -> None:
        """Fit and tune the table.

        Args:
            train: training cells.
            vocabulary_size: number of tokens, specials included.
            mask_rate: that of the scores; it decides how many neighbours are visible.
        """
        self.smoothing, self.strength = self._tune(train, vocabulary_size, mask_rate)
        self._table = NeighbourTable.count(train, vocabulary_size)
        self._gains = self._table.gains(self.smoothing)

    def __call__(self, masked: MaskedCells) -> Iterator[Answer]:
        """Yield positions and log probabilities, as `answer` does."""
        return self._table.predict(masked, self._gains, self.strength)

    @staticmethod
    def _tune(train: Ragged, vocabulary_size: int, mask_rate: float) -> tuple[float, float]:
        numbers = np.arange(train.n_cells)
        cells = train.take(numbers[numbers % 5 == 4])
        keys = cell_keys(0, np.zeros(cells.n_cells, dtype=np.int64), np.arange(cells.n_cells))
        masked = mask_cells(cells, keys, vocabulary_size, mask_rate)
        masked.hidden[np.cumsum(masked.hidden) > TUNING_POSITIONS] = False
        if not masked.hidden.any():
            return SMOOTHINGS[-1], 0.0  # too few cells to learn from: corpus frequency
        table = NeighbourTable.count(train.take(numbers[numbers % 5 != 4]), vocabulary_size)
        trials = []
        for smoothing in SMOOTHINGS:
            gains = table.gains(smoothing)
            for strength in STRENGTHS:
                loss = score_masked(partial(table.predict, gains=gains, strength=strength), masked).cross_entropy
                trials.append((loss, smoothing, strength))
        return min(trials)[1:]

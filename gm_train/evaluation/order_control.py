"""The order control: what stands next to the visible neighbours of a hidden gene, counted, no network.

Half of a cell's counts are 1, and genes with equal counts stand in the fixed order of their medians, so that
neighbours nearly name a hidden gene. What a model knows about cells is what it has beyond this table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_shards.tokens.vocabulary import MASK, PAD
from gm_train.evaluation.frequency_controls import F32, F64, I64, Answer, answer, corpus_frequency, log_share
from gm_train.evaluation.masked_genes import MaskedCells, mask_cells, score_masked
from gm_train.evaluation.ragged import Ragged
from gm_train.objective.cell_keys import cell_keys

#: The neighbours that are looked at, and how much each counts beside the nearest.
NEIGHBOURS = {-2: 0.6, -1: 1.0, 1: 1.0, 2: 0.6}
#: What the control is tuned over. Strength 0 is corpus frequency.
SMOOTHINGS = (3.0, 10.0, 30.0, 100.0)
STRENGTHS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
TUNING_POSITIONS = 2_000


def neighbour_tokens(shown: npt.NDArray[np.integer], span: slice, positions: I64, distance: int) -> I64:
    """What stands `distance` away from positions of one cell: int64 (n,); `PAD` beyond the cell's ends."""
    at = positions + distance
    inside = (at >= span.start) & (at < span.stop)
    return np.where(inside, shown[np.where(inside, at, span.start)], PAD).astype(np.int64)


def count_pairs(train: Ragged, vocabulary_size: int, distance: int) -> scipy.sparse.csr_matrix:
    """C(n, g), how often gene g stands where n stands `distance` away: float32 (vocabulary, vocabulary).

    An end of the cell is the neighbour `PAD`.
    """
    tokens = train.tokens.astype(np.int64)
    lengths = train.lengths
    at = np.arange(len(tokens)) + distance
    inside = (at >= np.repeat(train.indptr[:-1], lengths)) & (at < np.repeat(train.indptr[1:], lengths))
    neighbour = np.where(inside, tokens[np.where(inside, at, 0)], PAD)
    ones = np.ones(len(tokens), dtype=np.float32)
    # tocsr adds up the pairs that stand more than once.
    return scipy.sparse.coo_matrix((ones, (neighbour, tokens)), shape=(vocabulary_size, vocabulary_size)).tocsr()


@dataclass(frozen=True)
class NeighbourTable:
    """Corpus frequency and pair counts at every distance of `NEIGHBOURS`, of some cells."""

    frequency: F64
    pairs: dict[int, scipy.sparse.csr_matrix]

    @classmethod
    def count(cls, train: Ragged, vocabulary_size: int) -> "NeighbourTable":
        pairs = {distance: count_pairs(train, vocabulary_size, distance) for distance in NEIGHBOURS}
        return cls(corpus_frequency(train, vocabulary_size), pairs)

    def gains(self, smoothing: float) -> scipy.sparse.csr_matrix:
        """log(1 + C(n, g) / (smoothing * f(g))), one table under the other.

        Returns:
            float32 (distances * vocabulary, vocabulary), as sparse as the counts.
        """
        stacked = scipy.sparse.vstack([self.pairs[distance] for distance in NEIGHBOURS]).tocsr()
        stacked.data = np.log1p(stacked.data / (smoothing * self.frequency[stacked.indices])).astype(np.float32)
        return stacked

    def predict(self, masked: MaskedCells, gains: scipy.sparse.csr_matrix, strength: float) -> Iterator[Answer]:
        """Score the hidden positions: frequency times what each visible neighbour adds, visible genes left out."""
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

    with f the corpus frequency and C_d(n, g) how often g stood so beside n in training cells: a log-linear mixture of f
    and every P_d(g | n) = (C_d(n, g) + smoothing * f(g)) / (C_d(n) + smoothing). Hidden neighbours have no term.

    Attributes:
        smoothing, strength: those of the least cross-entropy on every fifth training cell, with tables of the others.
    """

    def __init__(self, train: Ragged, vocabulary_size: int, mask_rate: float) -> None:
        """Fit and tune.

        Args:
            train: training cells.
            vocabulary_size: number of tokens, specials included.
            mask_rate: as in the scores to come: it decides how many neighbours are visible.
        """
        self.smoothing, self.strength = self._tune(train, vocabulary_size, mask_rate)
        self._table = NeighbourTable.count(train, vocabulary_size)
        self._gains = self._table.gains(self.smoothing)

    def __call__(self, masked: MaskedCells) -> Iterator[Answer]:
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

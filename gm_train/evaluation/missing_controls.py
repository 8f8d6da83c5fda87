"""Controls of the missing-gene scores: frequency, a regression on principal components, and nearest neighbours.

Each is fitted on training cells that are divided like the cells it is scored on, and tuned on a part of them. It sees
the expression of the shown genes, of which the model sees the order alone.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.figures import NEIGHBOURS
from gm_train.evaluation.figures import PCA as PCA_CONTROL
from gm_train.evaluation.frequency_controls import F32, F64, corpus_frequency
from gm_train.evaluation.missing_genes import DividedCells, Guess
from gm_train.evaluation.principal_components import N_COMPONENTS

#: Settings that the controls are tuned over: the penalty of the regression, and the number of neighbours.
PENALTIES = (10.0, 100.0, 1000.0)
NUMBERS_OF_NEIGHBOURS = (10, 30, 100)
#: Weight of the corpus frequency, in expected genes of a cell, beside what is expected from the shown ones.
SMOOTHINGS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
#: Training cells that settings are compared on, at most; and how many there must be to compare any.
TUNING_CELLS, _FEW = 300, 12
#: Cells that are answered at once.
_GROUP = 64

#: Takes coordinates of cells, (n, components); returns how likely each has each gene, (n, vocabulary).
Expectation = Callable[[F32], F32]


class Components:
    """Principal components of the shown expression of training cells, and the genes that these cells have.

    Attributes:
        coordinates: float32 (n_cells, components), of the training cells.
        presence: float32 (n_cells, vocabulary), 1 where a cell has a gene, shown or missing.
    """

    def __init__(self, train: DividedCells, vocabulary_size: int) -> None:
        x = train.expression
        n = min(N_COMPONENTS, train.n_cells - 1, x.shape[1] - 1)
        varies = n > 0 and (x.multiply(x).mean(0) - np.square(x.mean(0))).max() > 0
        self._pca = PCA(n, svd_solver="arpack", random_state=0).fit(x) if varies else None
        self.coordinates = self.project(train)
        self.presence = _presence(train.shown, vocabulary_size) + _presence(train.missing, vocabulary_size)

    def project(self, cells: DividedCells) -> F32:
        """Coordinates of cells: float32 (n_cells, components); zeros if the training cells are all alike."""
        if self._pca is None:
            return np.zeros((cells.n_cells, 1), np.float32)
        return np.asarray(self._pca.transform(cells.expression), dtype=np.float32)


def _presence(cells: Ragged, vocabulary_size: int) -> scipy.sparse.csr_matrix:
    entries = np.ones(len(cells.tokens), np.float32), cells.tokens.astype(np.int64), cells.indptr
    return scipy.sparse.csr_matrix(entries, (cells.n_cells, vocabulary_size))


def by_regression(space: Components, penalty: float) -> Expectation:
    """Expect genes by ridge regression from the coordinates, in units of the largest one's deviation."""
    scale = space.coordinates.std(0).max() or 1.0
    ridge = Ridge(penalty).fit(space.coordinates / scale, space.presence.toarray())
    return lambda coordinates: np.clip(ridge.predict(coordinates / scale), 0, 1).astype(np.float32)


def by_neighbours(space: Components, neighbours: float) -> Expectation:
    """Expect the genes of the nearest training cells, by cosine."""
    n = min(int(neighbours), len(space.coordinates))
    search = NearestNeighbors(n_neighbors=n, metric="cosine").fit(space.coordinates)

    def expect(coordinates: F32) -> F32:
        graph = search.kneighbors_graph(coordinates, mode="connectivity")
        return np.asarray((graph @ space.presence).toarray() / n, dtype=np.float32)

    return expect


def frequency_guess(train: DividedCells, vocabulary_size: int) -> Guess:
    """Make the guess of corpus frequency."""
    frequency = _frequency(train, vocabulary_size)
    return _guess(lambda cells: np.zeros((cells.n_cells, vocabulary_size), np.float32), frequency, 1.0)


#: The methods of the tuned controls, and the settings that each is tried with.
METHODS: dict[str, tuple[Callable[[Components, float], Expectation], tuple[float, ...]]] = {
    PCA_CONTROL: (by_regression, PENALTIES),
    NEIGHBOURS: (by_neighbours, NUMBERS_OF_NEIGHBOURS),
}


def tuned_guesses(train: DividedCells, vocabulary_size: int) -> tuple[dict[str, Guess], dict[str, dict[str, float]]]:
    """Make the guess of each of `METHODS`, with the setting and smoothing that are best on some training cells.

    Args:
        train: divided training cells.
        vocabulary_size: number of tokens, specials included.

    Returns:
        The guesses, fitted on all training cells; and the `setting` and `smoothing` of each.
    """
    tuned = {
        name: {"setting": settings[0], "smoothing": SMOOTHINGS[len(SMOOTHINGS) // 2]}
        for name, (_, settings) in METHODS.items()
    }
    if train.n_cells >= _FEW:
        order = np.random.default_rng(0).permutation(train.n_cells)
        n = min(train.n_cells // 4, TUNING_CELLS)
        tuning, fitting = train.take(order[:n]), train.take(order[n:])
        space, frequency = Components(fitting, vocabulary_size), _frequency(fitting, vocabulary_size)
        coordinates = space.project(tuning)
        for name, (method, settings) in METHODS.items():
            scores = {}
            for setting in settings:
                expected = method(space, setting)(coordinates)
                for smoothing in SMOOTHINGS:
                    scores[setting, smoothing] = _cross_entropy(expected, frequency, smoothing, tuning)
            setting, smoothing = min(scores, key=lambda tried: scores[tried])
            tuned[name] = {"setting": setting, "smoothing": smoothing}
    space, frequency = Components(train, vocabulary_size), _frequency(train, vocabulary_size)
    guesses = {}
    for name, (method, _) in METHODS.items():
        expect = method(space, tuned[name]["setting"])
        guesses[name] = _guess(partial(_projected, space, expect), frequency, tuned[name]["smoothing"])
    return guesses, tuned


def _projected(space: Components, expect: Expectation, cells: DividedCells) -> F32:
    return expect(space.project(cells))


def _cross_entropy(expected: F32, frequency: F64, smoothing: float, cells: DividedCells) -> float:
    """The score of `_guess`, without its distributions."""
    sums = np.zeros((cells.n_cells, 2))
    of_missing = []
    for number in range(cells.n_cells):
        for part, sign in ((np.arange(FIRST_GENE, len(frequency)), 1), (cells.shown.cell(number), -1)):
            sums[number] += sign * expected[number, part].sum(), sign * frequency[part].sum()
        part = cells.missing.cell(number)
        of_missing.append(np.log(expected[number, part] + smoothing * frequency[part]).mean())
    return float((np.log(sums @ [1.0, smoothing]) - of_missing).mean())


def _frequency(train: DividedCells, vocabulary_size: int) -> F64:
    return corpus_frequency(Ragged.concatenate([train.shown, train.missing]), vocabulary_size)


def _guess(expected: Callable[[DividedCells], F32], frequency: F64, smoothing: float) -> Guess:
    """Probabilities in proportion to what is expected plus the smoothed frequency, among genes that are not shown.

    Args:
        expected: says how likely each cell has each gene, float32 (n_cells, vocabulary).
        frequency: float64 (vocabulary,).
        smoothing: weight of the frequency.
    """

    def guess(cells: DividedCells) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        shares = expected(cells) + np.float32(smoothing) * frequency.astype(np.float32)
        shares[:, :FIRST_GENE] = 0.0
        for start in range(0, cells.n_cells, _GROUP):
            numbers = np.arange(start, min(start + _GROUP, cells.n_cells))
            rows = shares[numbers]
            for row, number in zip(rows, numbers, strict=True):
                row[cells.shown.cell(int(number))] = 0.0
            yield numbers, torch.log_softmax(torch.from_numpy(rows).log(), dim=-1)

    return guess

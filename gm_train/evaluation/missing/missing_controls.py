"""Controls of the missing-gene scores: frequency, a regression on principal components, and nearest neighbours.

Each is fitted on training cells that are divided like the cells it is scored on. The last two see the expression of the
shown genes, of which the model sees the order alone; they are tuned on training cells.

A control says how likely a cell has a gene, e. Given that the gene is not shown, it is missing with the probability
e (1 - s) / (1 - s e), where s is the share of genes that are shown.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation import figures
from gm_train.evaluation.missing.missing_genes import SHOWN, DividedCells, Guess
from gm_train.evaluation.principal_components import N_COMPONENTS

#: Settings that the controls are tuned over: the penalty of the regression, and the number of neighbours.
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
NUMBERS_OF_NEIGHBOURS = (5, 10, 20, 50, 100, 200)
#: Weight of a gene's frequency beside what is expected from the shown genes; 1 is frequency alone.
FREQUENCY_WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0)
#: Training cells that settings are compared on, at most. Where there are fewer, each is used once, in `_FOLDS` parts.
TUNING_CELLS, _FOLDS = 300, 4
#: Cells that are answered at once.
_GROUP = 64

F32 = npt.NDArray[np.float32]
#: Takes coordinates of cells, (n, components); returns how likely each has each gene, (n, vocabulary).
Expectation = Callable[[F32], F32]


class Components:
    """Principal components of the shown expression of training cells, and the genes that these cells have.

    Attributes:
        coordinates: float32 (n_cells, components), of the training cells.
        presence: float32 (n_cells, vocabulary), 1 where a cell has a gene, shown or missing.
        frequency: float32 (vocabulary,), share of the training cells that have a gene, after adding one that has it and
            one that has not; 0 for special tokens.
    """

    def __init__(self, train: DividedCells, vocabulary_size: int) -> None:
        x = train.expression
        n = min(N_COMPONENTS, train.n_cells - 1, x.shape[1] - 1)
        varies = n > 0 and (x.max(0) - x.min(0)).toarray().any()
        self._pca = PCA(n, svd_solver="arpack", random_state=0).fit(x) if varies else None
        self.coordinates = self.project(train)
        self.presence = _presence(train.shown, vocabulary_size) + _presence(train.missing, vocabulary_size)
        frequency = (np.asarray(self.presence.sum(0))[0] + 1) / (train.n_cells + 2)
        frequency[:FIRST_GENE] = 0.0
        self.frequency = frequency.astype(np.float32)

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
    x = space.coordinates.astype(np.float64) / scale
    means, presence = x.mean(0), space.presence
    average = np.asarray(presence.mean(0))[0]
    # The normal equations, with the sparse presence as it is.
    products = (presence.T @ (x - means)).T  # the mean of presence drops out: deviations of x sum to zero
    weights = np.linalg.solve((x - means).T @ (x - means) + penalty * np.eye(x.shape[1]), products)

    def expect(coordinates: F32) -> F32:
        found = (coordinates / scale - means) @ weights + average
        return np.asarray(np.clip(found, 0, 1), dtype=np.float32)

    return expect


def by_neighbours(space: Components, neighbours: float) -> Expectation:
    """Expect the genes of the nearest training cells, by cosine."""
    n = min(int(neighbours), len(space.coordinates))
    search = NearestNeighbors(n_neighbors=n, metric="cosine").fit(space.coordinates)

    def expect(coordinates: F32) -> F32:
        graph = search.kneighbors_graph(coordinates, mode="connectivity")
        return np.asarray((graph @ space.presence).toarray() / n, dtype=np.float32)

    return expect


#: The methods of the tuned controls, and the settings that each is tried with.
METHODS: dict[str, tuple[Callable[[Components, float], Expectation], tuple[float, ...]]] = {
    figures.PCA: (by_regression, PENALTIES),
    figures.NEIGHBOURS: (by_neighbours, NUMBERS_OF_NEIGHBOURS),
}


def fitted_guesses(train: DividedCells, vocabulary_size: int) -> tuple[dict[str, Guess], dict[str, dict[str, float]]]:
    """Make the guesses of frequency and of each of `METHODS`, with the settings that are best on training cells.

    Args:
        train: divided training cells, at least one.
        vocabulary_size: number of tokens, specials included.

    Returns:
        The guesses, fitted on all training cells; and the `setting` and `frequency_weight` of each method.
    """
    tuned = _tune(train, vocabulary_size)
    space = Components(train, vocabulary_size)
    guesses = {figures.FREQUENCY: _guess(space, lambda coordinates: space.frequency[None], 1.0)}
    for name, (method, _) in METHODS.items():
        expect = method(space, tuned[name]["setting"])
        guesses[name] = _guess(space, expect, tuned[name]["frequency_weight"])
    return guesses, tuned


def _tune(train: DividedCells, vocabulary_size: int) -> dict[str, dict[str, float]]:
    order = np.random.default_rng(0).permutation(train.n_cells)
    if train.n_cells >= _FOLDS * TUNING_CELLS:
        folds = [order[:TUNING_CELLS]]
    else:
        folds = [order[i::_FOLDS] for i in range(_FOLDS)]
    sums: dict[str, dict[tuple[float, float], float]] = {name: {} for name in METHODS}
    for fold in folds:
        rest = np.setdiff1d(order, fold)
        if not len(fold) or not len(rest):
            continue
        space, tuning = Components(train.take(rest), vocabulary_size), train.take(fold)
        coordinates = space.project(tuning)
        for name, (method, settings) in METHODS.items():
            for setting in settings:
                expected = method(space, setting)(coordinates)
                for weight in FREQUENCY_WEIGHTS:
                    log_shares = _log_shares(expected, space.frequency, weight, tuning)
                    entropy = _entropies(log_shares, tuning.missing).sum()
                    sums[name][setting, weight] = sums[name].get((setting, weight), 0.0) + entropy
    found = {}
    for name, scores in sums.items():
        # One training cell leaves nothing to compare: then frequency alone.
        setting, weight = min(scores, key=lambda tried: scores[tried]) if scores else (METHODS[name][1][0], 1.0)
        found[name] = {"setting": setting, "frequency_weight": weight}
    return found


def _entropies(log_shares: F32, missing: Ragged) -> npt.NDArray[np.float64]:
    """The cross-entropy of each cell: float64 (n_cells,)."""
    lengths = missing.lengths
    number = np.repeat(np.arange(missing.n_cells), lengths)
    of_missing = log_shares[number, missing.tokens.astype(np.int64)].astype(np.float64)
    return -np.bincount(number, of_missing, missing.n_cells) / lengths


def _log_shares(expected: F32, frequency: F32, weight: float, cells: DividedCells) -> F32:
    """Log probabilities of the next missing gene: float32 (n_cells, vocabulary); minus infinity for shown genes.

    Args:
        expected: how likely each cell has each gene, float32 (n_cells, vocabulary).
        frequency: of `Components`.
        weight: of the frequency.
        cells: of which the shown genes are ruled out.
    """
    has = np.float32(1 - weight) * expected + np.float32(weight) * frequency
    missing = has / (1 - np.float32(SHOWN) * has)
    missing = np.broadcast_to(missing, (cells.n_cells, missing.shape[1])).copy()
    missing[:, :FIRST_GENE] = 0.0
    missing[np.repeat(np.arange(cells.n_cells), cells.shown.lengths), cells.shown.tokens.astype(np.int64)] = 0.0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(missing / missing.sum(1, keepdims=True)), dtype=np.float32)


def _guess(space: Components, expect: Expectation, weight: float) -> Guess:
    def guess(cells: DividedCells) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        for start in range(0, cells.n_cells, _GROUP):
            numbers = np.arange(start, min(start + _GROUP, cells.n_cells))
            some = cells.take(numbers)
            log_shares = _log_shares(expect(space.project(some)), space.frequency, weight, some)
            yield numbers, torch.from_numpy(log_shares)

    return guess

"""Missing-gene scores: divided cells, slow references of score and controls, and the network's guess."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.config.schema import ModelConfig
from gm_train.evaluation.figures import FREQUENCY, NEIGHBOURS, PCA
from gm_train.evaluation.missing.missing_controls import (
    METHODS,
    Components,
    by_neighbours,
    by_regression,
    fitted_guesses,
)
from gm_train.evaluation.missing.missing_genes import DividedCells, Guess, divide, model_guess, score_missing
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.cell_keys import cell_keys
from tests.support.evaluation_cases import VOCABULARY, ragged, random_cells

GENES = range(FIRST_GENE, VOCABULARY)


def divided(n_cells: int, seed: int, key_seed: int = 0) -> DividedCells:
    """Random cells, divided; their expression is the token itself."""
    cells = random_cells(n_cells, seed)
    return divide(cells, expression_of(cells), keys_of(n_cells, key_seed))


def keys_of(n_cells: int, seed: int) -> npt.NDArray[np.uint64]:
    return cell_keys(seed, np.zeros(n_cells, np.int64), np.arange(n_cells))


def expression_of(cells: object) -> scipy.sparse.csr_matrix:
    expression = np.zeros((cells.n_cells, len(GENES)), np.float32)  # type: ignore[attr-defined]
    for number in range(len(expression)):
        tokens = cells.cell(number).astype(int)  # type: ignore[attr-defined]
        expression[number, tokens - FIRST_GENE] = tokens
    return scipy.sparse.csr_matrix(expression)


def log_probs(guess: Guess, cells: DividedCells) -> npt.NDArray[np.float64]:
    found = np.full((cells.n_cells, VOCABULARY), np.nan)
    for numbers, values in guess(cells):
        found[numbers] = values.double().numpy()
    return found


def test_a_cell_is_divided_in_its_order_and_only_shown_genes_keep_their_expression() -> None:
    cells = random_cells(60, seed=1)
    parts = divide(cells, expression_of(cells), keys_of(60, 0))
    whole = iter([tuple(cells.cell(number).tolist()) for number in range(60)])
    shares = []
    for number in range(parts.n_cells):
        shown, missing = parts.shown.cell(number).tolist(), parts.missing.cell(number).tolist()
        cell = next(cell for cell in whole if sorted(cell) == sorted(shown + missing))
        assert all([gene for gene in cell if gene in part] == part for part in (shown, missing))
        expected = np.zeros(len(GENES))
        counts = np.expm1(shown)  # the expression of a token is its number
        expected[np.array(shown) - FIRST_GENE] = np.log1p(10_000 * counts / counts.sum())
        np.testing.assert_allclose(parts.expression[number].toarray()[0], expected, rtol=1e-5)
        shares.append(len(shown) / len(cell))
    assert 0.4 < np.mean(shares) < 0.6
    assert parts.n_cells < 60  # cells of no gene or one cannot be divided
    assert min(parts.shown.lengths.min(), parts.missing.lengths.min()) > 0


def test_another_order_shows_the_same_genes() -> None:
    """As plain and dithered ranks are."""
    cells = random_cells(30, seed=1)
    turned = ragged([cells.cell(number)[::-1].tolist() for number in range(30)])
    ours, theirs = (divide(some, expression_of(some), keys_of(30, 0)) for some in (cells, turned))
    for number in range(ours.n_cells):
        assert ours.shown.cell(number).tolist() == theirs.shown.cell(number)[::-1].tolist()


def test_parts_depend_on_the_key_alone() -> None:
    first, again, other = (divided(30, 1, key_seed).shown.tokens for key_seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_score_agrees_with_a_slow_reference() -> None:
    """Ties count as their mean over random orders."""
    cells = divided(25, seed=2)
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.integers(1, 4, (cells.n_cells, VOCABULARY))).double()

    def guess(cells: DividedCells) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        for number in range(cells.n_cells):
            row = values[number].clone()
            row[cells.shown.cell(number).astype(np.int64)] = -torch.inf
            yield np.array([number]), torch.log_softmax(row, 0)[None]

    score = score_missing(guess, cells)
    table = log_probs(guess, cells)
    entropies, shares = [], []
    for number in range(cells.n_cells):
        missing = cells.missing.cell(number).tolist()
        entropies.append(-np.mean([table[number, gene] for gene in missing]))
        trials = []
        for _ in range(2000):
            order = np.lexsort((rng.random(VOCABULARY), -table[number]))
            trials.append(len(set(order[: len(missing)]) & set(missing)) / len(missing))
        shares.append(100 * np.mean(trials))
    assert score.cross_entropy == pytest.approx(np.mean(entropies), rel=1e-6)
    assert score.found == pytest.approx(np.mean(shares), abs=0.5)


def test_a_guess_answers_for_each_cell_once() -> None:
    cells = divided(8, seed=3)
    guess = fitted_guesses(cells, VOCABULARY)[0][FREQUENCY]
    with pytest.raises(ValueError, match="every cell exactly once"):
        score_missing(lambda cells: (part for _ in range(2) for part in guess(cells)), cells)
    with pytest.raises(ValueError, match="no cells to score"):
        score_missing(guess, cells.take(np.zeros(0, np.int64)))


def test_frequency_agrees_with_a_slow_reference() -> None:
    """By Bayes: a gene that half of the cells have is, if it is not shown, missing from a third of them."""
    train, cells = divided(20, seed=4), divided(15, seed=5)
    tokens = [*train.shown.tokens.tolist(), *train.missing.tokens.tolist()]
    guesses, _ = fitted_guesses(train, VOCABULARY)
    table = log_probs(guesses[FREQUENCY], cells)
    for number in range(cells.n_cells):
        shown = cells.shown.cell(number).tolist()
        has = {gene: (tokens.count(gene) + 1) / (train.n_cells + 2) for gene in GENES if gene not in shown}
        weights = {gene: 0.5 * p / (0.5 * p + 1 - p) for gene, p in has.items()}
        for token in range(VOCABULARY):
            expected = math.log(weights[token] / sum(weights.values())) if token in weights else -math.inf
            assert table[number, token] == pytest.approx(expected, rel=1e-5)


def test_the_regression_agrees_with_scikit_learn() -> None:
    space = Components(divided(40, seed=6), VOCABULARY)
    scale = space.coordinates.std(0).max()
    theirs = Ridge(30.0).fit(space.coordinates / scale, space.presence.toarray()).predict(space.coordinates / scale)
    np.testing.assert_allclose(by_regression(space, 30.0)(space.coordinates), theirs.clip(0, 1), atol=1e-5)


def test_neighbours_are_those_of_least_angle() -> None:
    train = divided(30, seed=6)
    space = Components(train, VOCABULARY)
    found = by_neighbours(space, 3)(space.coordinates)
    presence = space.presence.toarray()
    for number, x in enumerate(space.coordinates):
        cosine = space.coordinates @ x / np.linalg.norm(space.coordinates, axis=1) / np.linalg.norm(x)
        np.testing.assert_allclose(found[number], presence[np.argsort(-cosine)[:3]].mean(0), atol=1e-6)
    for number in range(train.n_cells):
        genes = {*train.shown.cell(number).tolist(), *train.missing.cell(number).tolist()}
        assert set(np.flatnonzero(presence[number])) == genes


def two_kinds(n_cells: int, seed: int) -> DividedCells:
    """Cells of two kinds, whose genes are those with small or with large numbers; some genes are rarer than others."""
    rng = np.random.default_rng(seed)
    half = FIRST_GENE + len(GENES) // 2
    lists = []
    for number in range(n_cells):
        genes = np.arange(FIRST_GENE, half) if number % 2 else np.arange(half, VOCABULARY)
        lists.append(rng.permutation(genes[rng.random(len(genes)) < RATES]).tolist())
    cells = ragged(lists)
    return divide(cells, expression_of(cells), keys_of(n_cells, seed))


RATES = np.array([0.95, 0.95, 0.9, 0.5, 0.2, 0.2])


def best_possible(cells: DividedCells) -> float:
    """The cross-entropy of a guess that knows a cell's kind, and how often that kind has each gene."""
    half, entropies = FIRST_GENE + len(GENES) // 2, []
    for number in range(cells.n_cells):
        missing, shown = cells.missing.cell(number).tolist(), cells.shown.cell(number).tolist()
        first = FIRST_GENE if missing[0] < half else half
        weights = {first + i: 0.5 * rate / (1 - 0.5 * rate) for i, rate in enumerate(RATES) if first + i not in shown}
        entropies.append(-np.mean([math.log(weights[gene] / sum(weights.values())) for gene in missing]))
    return float(np.mean(entropies))


def test_the_controls_learn_what_can_be_learned() -> None:
    train, cells = two_kinds(600, seed=1), two_kinds(400, seed=2)
    guesses, tuned = fitted_guesses(train, VOCABULARY)
    assert set(tuned) == set(METHODS) == {PCA, NEIGHBOURS}
    scores = {name: score_missing(guess, cells) for name, guess in guesses.items()}
    best = best_possible(cells)
    assert scores[FREQUENCY].cross_entropy > best + 0.5
    assert best < scores[PCA].cross_entropy < best + 0.25
    assert best < scores[NEIGHBOURS].cross_entropy < best + 0.05
    assert min(scores[PCA].found, scores[NEIGHBOURS].found) > scores[FREQUENCY].found + 10


def test_where_nothing_can_be_learned_the_controls_stay_near_frequency() -> None:
    guesses, _ = fitted_guesses(divided(400, seed=1), VOCABULARY)
    cells = divided(200, seed=2)
    frequency = score_missing(guesses[FREQUENCY], cells).cross_entropy
    for name in METHODS:
        assert score_missing(guesses[name], cells).cross_entropy < frequency + 0.02


@pytest.mark.parametrize("which", [[0], [0, 0], [0] * 7, [0, 1], [0, 1, 2, 3, 4]])
def test_few_training_cells_are_enough(which: list[int]) -> None:
    train, cells = divided(40, seed=7).take(np.array(which)), divided(10, seed=8)
    for guess in fitted_guesses(train, VOCABULARY)[0].values():
        assert np.isfinite(score_missing(guess, cells).cross_entropy)


@pytest.fixture
def model() -> GeneMamba:
    torch.manual_seed(0)
    made = GeneMamba(ModelConfig(d_model=8, n_layers=2, d_state=4, head_dim=4, chunk=4), VOCABULARY).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    return made


def test_the_networks_guess_is_that_of_its_training(model: GeneMamba) -> None:
    """Its cross-entropy is the loss of `objective.language=missing` for the same parts, cell by cell."""
    cells = divided(30, seed=9)
    score = score_missing(model_guess(model), cells)
    losses = []
    with torch.inference_mode():
        for number in range(cells.n_cells):
            ids = torch.from_numpy(cells.shown.cell(number).astype(np.int64))[None]
            pooled = model(ids, torch.ones_like(ids)).mean(1)
            shown, missing = torch.zeros(2, 1, VOCABULARY, dtype=torch.bool)
            shown[0, ids[0]] = True
            missing[0, torch.from_numpy(cells.missing.cell(number).astype(np.int64))] = True
            losses.append(float(model.missing_loss(pooled, shown, missing)))
    assert score.cross_entropy == pytest.approx(np.mean(losses), rel=1e-5)

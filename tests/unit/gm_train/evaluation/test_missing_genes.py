"""Missing-gene scores: divided cells, slow references of score and controls, and the network's guess."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse
import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.config.schema import ModelConfig
from gm_train.evaluation.figures import NEIGHBOURS, PCA
from gm_train.evaluation.missing_controls import (
    METHODS,
    Components,
    by_neighbours,
    frequency_guess,
    tuned_guesses,
)
from gm_train.evaluation.missing_genes import DividedCells, Guess, divide, model_guess, score_missing
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.cell_keys import cell_keys
from tests.support.evaluation_cases import VOCABULARY, random_cells

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
        expected[np.array(shown) - FIRST_GENE] = shown
        assert np.array_equal(parts.expression[number].toarray()[0], expected)
        shares.append(len(shown) / len(cell))
    assert 0.4 < np.mean(shares) < 0.6
    assert parts.n_cells < 60  # cells of no gene or one cannot be divided
    assert min(parts.shown.lengths.min(), parts.missing.lengths.min()) > 0


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
    guess = frequency_guess(cells, VOCABULARY)
    with pytest.raises(ValueError, match="every cell exactly once"):
        score_missing(lambda cells: (part for _ in range(2) for part in guess(cells)), cells)
    with pytest.raises(DataError, match="--max-cells"):
        score_missing(guess, cells.take(np.zeros(0, np.int64)))


def test_frequency_agrees_with_a_slow_reference() -> None:
    train, cells = divided(20, seed=4), divided(15, seed=5)
    tokens = [*train.shown.tokens.tolist(), *train.missing.tokens.tolist()]
    table = log_probs(frequency_guess(train, VOCABULARY), cells)
    for number in range(cells.n_cells):
        shown = cells.shown.cell(number).tolist()
        weights = {gene: tokens.count(gene) + 1 for gene in GENES if gene not in shown}
        for token in range(VOCABULARY):
            expected = math.log(weights[token] / sum(weights.values())) if token in weights else -math.inf
            assert table[number, token] == pytest.approx(expected, rel=1e-5)


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
    """Cells of two kinds, whose genes are those with small or with large numbers."""
    rng = np.random.default_rng(seed)
    half = FIRST_GENE + len(GENES) // 2
    cells = random_cells(n_cells, seed)
    lists = [
        rng.permutation(np.arange(FIRST_GENE, half) if i % 2 else np.arange(half, VOCABULARY))[:5]
        for i in range(n_cells)
    ]
    cells = type(cells)(np.concatenate(lists).astype(np.uint16), np.arange(0, 5 * n_cells + 1, 5))
    return divide(cells, expression_of(cells), keys_of(n_cells, seed))


def test_the_controls_learn_what_can_be_learned() -> None:
    """Of cells of two kinds, the genes of the other kind are ruled out: 6 candidates less the shown ones."""
    train, cells = two_kinds(400, seed=1), two_kinds(100, seed=2)
    guesses, tuned = tuned_guesses(train, VOCABULARY)
    frequency = score_missing(frequency_guess(train, VOCABULARY), cells)
    assert set(guesses) == set(tuned) == set(METHODS) == {PCA, NEIGHBOURS}
    n_shown = cells.shown.lengths
    perfect = np.mean(np.log(6 - n_shown))
    assert frequency.cross_entropy > perfect + 0.5
    for name, guess in guesses.items():
        score = score_missing(guess, cells)
        assert score.cross_entropy < perfect + {PCA: 0.3, NEIGHBOURS: 0.1}[name]
        assert score.found > frequency.found + 10


def test_where_nothing_can_be_learned_the_controls_stay_near_frequency() -> None:
    train, cells = divided(400, seed=1), divided(200, seed=2)
    frequency = score_missing(frequency_guess(train, VOCABULARY), cells).cross_entropy
    for guess in tuned_guesses(train, VOCABULARY)[0].values():
        assert score_missing(guess, cells).cross_entropy < frequency + 0.05


@pytest.mark.parametrize("n_cells", [2, 5])
def test_few_training_cells_are_enough(n_cells: int) -> None:
    train, cells = divided(40, seed=7).take(np.arange(n_cells) // 2), divided(10, seed=8)
    for guess in tuned_guesses(train, VOCABULARY)[0].values():
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

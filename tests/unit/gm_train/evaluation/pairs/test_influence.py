"""Influence is the change of a hidden gene's log probability when a shown gene is taken out, as defined."""

import numpy as np
import pytest
import torch

from data_shards.tokens.vocabulary import FIRST_GENE, MASK
from gm_train.config.load import load_config
from gm_train.evaluation.pairs.influence import HalvedCells, halve, influences
from gm_train.model.genemamba import GeneMamba, cell_embeddings
from gm_train.objective.cell_keys import cell_keys
from tests.support.evaluation_cases import ragged, random_cells
from tests.support.regulated_cells import known_influence

VOCABULARY = 30


def halved_cells(n_cells: int = 20) -> HalvedCells:
    cells = random_cells(n_cells, seed=1, vocabulary_size=VOCABULARY)
    return halve(cells, cell_keys(0, np.zeros(n_cells, np.int64), np.arange(n_cells)))


@pytest.fixture(scope="module")
def model() -> GeneMamba:
    config = load_config("data.store=store", "run.dir=run", "model.d_model=16", "model.n_layers=2", "model.d_state=8",
                         "model.head_dim=8", "model.chunk=16")  # fmt: skip
    torch.manual_seed(0)
    return GeneMamba(config.model, VOCABULARY).eval()


def log_probs(
    model: GeneMamba, tokens: list[int], shown: list[bool], language: str, left_out: list[int]
) -> torch.Tensor:
    """Log probability of each gene of a cell, in a slow way: at its place, or of the pooled state."""
    if language == "missing":
        ids = torch.tensor([[token for token, here in zip(tokens, shown, strict=True) if here]])
        states = model(ids, torch.ones_like(ids))
        logits = model.logits(cell_embeddings(states, torch.ones_like(ids)))[0]
        logits[left_out] = -torch.inf
        return torch.log_softmax(logits, -1)[tokens]
    ids = torch.tensor([[token if here else MASK for token, here in zip(tokens, shown, strict=True)]])
    logits = model.logits(model(ids, torch.ones_like(ids)))[0]
    return torch.log_softmax(logits, -1)[torch.arange(len(tokens)), tokens]


@torch.inference_mode()
@pytest.mark.parametrize("language", ["missing", "masked"])
def test_influences_agree_with_a_slow_reference(model: GeneMamba, language: str) -> None:
    halved, genes = halved_cells(), np.array([3, 8, 5, 20, 21])
    sums, counts = np.zeros((2, 5, 5))
    for tokens, shown in halved.turns():
        of_all = tokens.tolist()
        left_out = [*range(FIRST_GENE), *tokens[shown].tolist()]
        for i, gene in enumerate(genes):
            if gene not in tokens[shown]:
                continue
            less = shown & (tokens != gene)
            change = log_probs(model, of_all, shown.tolist(), language, left_out) - log_probs(
                model, of_all, less.tolist(), language, left_out
            )
            change -= change[~shown].mean()
            for j, other in enumerate(genes):
                if other in tokens[~shown]:
                    sums[i, j] += change[of_all.index(other)]
                    counts[i, j] += 1
    assert counts.sum() > 20
    expected = sums / np.maximum(counts, 1)
    np.testing.assert_allclose(influences(model, halved, genes, language), expected, atol=2e-5)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("language", ["missing", "masked"])
def test_an_effect_that_is_written_into_a_model_is_found_in_its_direction(language: str) -> None:
    pairs = np.stack([np.arange(2, 16), np.arange(16, 30)], axis=1)
    genes = np.arange(2, 30)
    found = influences(known_influence(pairs, VOCABULARY), halved_cells(60), genes, language)
    forward, backward = found[*(pairs - 2).T], found[*(pairs - 2).T[::-1]]
    assert np.all(np.abs(forward) > np.abs(backward))
    assert np.all(np.sign(forward) == np.where(np.arange(14) % 3, 1, -1))


def test_each_pair_is_asked_in_both_directions_in_the_same_cells() -> None:
    halved = halved_cells(40)
    pairs = np.array([[a, b] for a in range(2, 30) for b in range(2, 30) if a != b])
    expected = np.zeros((VOCABULARY, VOCABULARY), np.int64)
    for tokens, shown in halved.turns():
        expected[np.ix_(tokens[shown], tokens[~shown])] += 1
    # Only a half of one gene is not asked, since nothing is left without it.
    assert np.abs(expected - expected.T).max() <= 1
    np.testing.assert_array_equal(halved.n_asked(pairs, VOCABULARY), np.minimum(expected, expected.T)[*pairs.T])
    assert 3 < expected[2:, 2:].mean() < 10


def test_cells_with_too_few_genes_are_not_asked() -> None:
    halved = HalvedCells(ragged([[], [2], [2, 3, 4]]), np.array([True, True, True, False]))
    turns = list(halved.turns())
    assert [tokens.tolist() for tokens, _ in turns] == [[2, 3, 4]]  # with one gene shown, nothing is left without it
    assert turns[0][1].tolist() == [True, True, False]
    assert halved.n_asked(np.array([[2, 4], [4, 2]]), VOCABULARY).tolist() == [0, 0]
    found = influences(known_influence(np.array([[2, 4]]), VOCABULARY), halved, np.array([2, 4]), "missing")
    assert found[1, 0] == 0

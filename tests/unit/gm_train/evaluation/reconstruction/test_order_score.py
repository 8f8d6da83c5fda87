"""Scores of orders: against scipy and rapidfuzz, and on orders whose score is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from gm_train.evaluation.masked.frequency_controls import Frequency
from gm_train.evaluation.masked.order_control import OrderControl
from gm_train.evaluation.reconstruction.order_score import OrderScore, score_orders, spearman
from gm_train.evaluation.reconstruction.reconstructed_order import reconstruct
from tests.support.evaluation_cases import VOCABULARY, mask, ragged, random_cells


def genes(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


TRUE = genes(5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (TRUE, 1.0),
        (TRUE[::-1], -1.0),
        (genes(1, 2, 3, 4, 10), 0.0),  # none of them
        (genes(1, 2, 7, 3, 4), 0.0),  # the middle gene alone says nothing about an order
        # Places 0, 2, 2, 2, 4: ranks 1, 3, 3, 3, 5 against 1, 2, 3, 4, 5, so cov 8 and variances 8 and 10.
        (genes(5, 1, 2, 3, 9), 8 / np.sqrt(8 * 10)),
        # Places 4, 2, 2, 2, 0: the same, backwards.
        (genes(9, 1, 2, 3, 5), -8 / np.sqrt(8 * 10)),
        # Places 0, 2, 2, 2, 2: ranks 1, 3.5, 3.5, 3.5, 3.5: cov 5, variances 5 and 10.
        (genes(5, 1, 2, 3, 4), 5 / np.sqrt(5 * 10)),
    ],
)
def test_correlations_computed_by_hand(named: np.ndarray, expected: float) -> None:
    assert spearman(TRUE, named) == pytest.approx(expected)


@given(st.permutations(range(8)), st.integers(0, 8))
def test_it_agrees_with_scipy_with_genes_that_are_not_named_in_the_middle(order: list[int], wrong: int) -> None:
    truth = np.arange(8)
    named = np.array(order)
    named[:wrong] += 100
    places = [order.index(gene) if order.index(gene) >= wrong else 3.5 for gene in range(8)]
    expected = 0.0 if len(set(places)) == 1 else spearmanr(truth, places).statistic
    assert spearman(truth, named) == pytest.approx(expected)


def test_scores_of_several_cells() -> None:
    pairs = [
        (TRUE, TRUE),
        (genes(2, 3), genes(3, 2)),  # no place is right; the distance is 2 of 2
        (genes(4), genes(9)),  # one gene has no order: left out
        (genes(2, 3, 4, 5), genes(3, 4, 5, 2)),  # shifted by one: distance 2 of 4
    ]
    score = score_orders(pairs)
    assert score is not None
    assert score.named == pytest.approx(100 / 3)
    assert score.levenshtein == pytest.approx((0 + 1 + 0.5) / 3)
    assert score.spearman == pytest.approx((1 - 1 + spearmanr([0, 1, 2, 3], [3, 0, 1, 2]).statistic) / 3)
    # 11 of 11 tokens, 4 + 0 + 2 of 4 + 1 + 3 pairs, 3 + 1 of 3 + 2 triples, 2 + 0 of 2 + 1 quadruples.
    assert score.bleu == pytest.approx((6 / 8 * 4 / 5 * 2 / 3) ** 0.25)


def test_without_a_cell_of_several_genes_there_is_no_score() -> None:
    assert score_orders([]) is None
    assert score_orders([(genes(2), genes(2))]) is None


def test_where_cells_have_an_order_its_table_reconstructs_it_and_frequency_does_not() -> None:
    cells = [sorted(random_cells(1, seed).cell(0).tolist()) for seed in range(300)]
    train, held_out = ragged(cells[:250]), mask(ragged(cells[250:]))
    scores: list[OrderScore] = []
    for control in (OrderControl(train, VOCABULARY, 0.3), Frequency(train, VOCABULARY)):
        score = score_orders(reconstruct(control, held_out))
        assert score is not None
        scores.append(score)
    order, frequency = scores
    assert order.named > frequency.named + 10
    assert order.spearman > frequency.spearman + 0.3
    assert order.levenshtein < frequency.levenshtein - 0.1

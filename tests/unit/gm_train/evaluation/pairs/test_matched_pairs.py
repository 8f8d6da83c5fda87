"""Pairs that share a set, and random ones with genes of the same classes that share none."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_train.evaluation.pairs.matched_pairs import (
    FREQUENCY_CLASSES,
    draw_matched,
    match_classes,
    related_pairs,
    sharing,
)
from gm_train.objective.pathway import PathwayIndex

N_GENES = 30
TOKENS = {f"g{i}": i + 2 for i in range(N_GENES)}


def index_of(sets: list[set[int]]) -> PathwayIndex:
    """Index sets of gene numbers; gene i has token i + 2."""
    named = {f"set {i}": [f"g{gene}" for gene in genes] for i, genes in enumerate(sets)}
    return PathwayIndex.build(named, TOKENS, N_GENES + 2, (2, 200))


SETS = st.lists(st.sets(st.integers(0, N_GENES - 1), min_size=2, max_size=8), min_size=1, max_size=70)


@given(sets=SETS)
def test_related_pairs_are_those_of_a_slow_reference(sets: list[set[int]]) -> None:
    index = index_of(sets)
    genes = np.flatnonzero(index.annotated)
    found = {tuple(sorted(pair)) for pair in related_pairs(index, genes).tolist()}
    expected = {(a + 2, b + 2) for genes_of in sets for a, b in itertools.combinations(sorted(genes_of), 2)}
    assert found == expected
    everything = np.array(list(itertools.combinations(range(2, N_GENES + 2), 2)))
    assert {tuple(pair) for pair in everything[sharing(index, everything)].tolist()} == expected


@given(sets=SETS, seed=st.integers(0, 100))
def test_random_pairs_are_of_the_same_classes_and_share_no_set(sets: list[set[int]], seed: int) -> None:
    index, other = index_of(sets), index_of([{0, 5, 9}, {1, 2}])
    genes = np.flatnonzero(index.annotated)
    frequency = np.random.default_rng(0).random(len(genes))
    classes = match_classes(index, genes, frequency, other.annotated[genes])
    related = related_pairs(index, genes)
    sample = draw_matched(related, genes, classes, [index, other], np.random.default_rng(seed))
    assert len(sample.related) == len(sample.random) == len(related) - sample.unmatched
    assert sharing(index, sample.related).all()
    for each in (index, other):
        assert not sharing(each, sample.random).any()
    assert (sample.random[:, 0] != sample.random[:, 1]).all()
    class_of = dict(zip(genes.tolist(), classes.tolist(), strict=True))
    n_sets = {gene: sum(gene - 2 in genes_of for genes_of in sets) for gene in genes.tolist()}
    for pair, like in zip(sample.related.tolist(), sample.random.tolist(), strict=True):
        for gene, stand_in in zip(pair, like, strict=True):
            assert class_of[gene] == class_of[stand_in]
            assert n_sets[gene] == n_sets[stand_in] or min(n_sets[gene], n_sets[stand_in]) > 2
            assert max(n_sets[gene], n_sets[stand_in]) < 2 * min(n_sets[gene], n_sets[stand_in]) or n_sets[gene] < 3


@pytest.mark.parametrize(
    ("n_sets", "same"), [(1, {1}), (2, {2}), (3, {3, 4}), (4, {3, 4}), (5, {5, 6, 7, 8}), (8, {5, 6, 7, 8})]
)
def test_classes_of_the_number_of_sets(n_sets: int, same: set[int]) -> None:
    # Gene i is in i + 1 sets, each with a partner of its own that is in no other.
    sets = [{gene, 10 + gene} for gene in range(9) for _ in range(gene + 1)]
    index = index_of(sets)
    genes = np.arange(9) + 2
    classes = match_classes(index, genes, np.zeros(9), np.zeros(9, np.bool_)) // (2 * FREQUENCY_CLASSES)
    assert {i + 1 for i in range(9) if classes[i] == classes[n_sets - 1]} == same


def test_genes_are_matched_by_how_many_cells_have_them_and_whether_they_were_trained() -> None:
    index = index_of([set(range(20))])
    genes = np.arange(20) + 2
    trained = np.arange(20) % 2 == 0
    classes = match_classes(index, genes, np.arange(20) / 20, trained)
    groups = sorted(np.flatnonzero(classes == c).tolist() for c in np.unique(classes))
    assert groups == sorted([4 * i + odd, 4 * i + 2 + odd] for i in range(5) for odd in (0, 1))


def test_a_pair_without_a_like_is_left_out_and_counted() -> None:
    index = index_of([{0, 1, 2}])  # there is no gene outside of the set
    genes = np.flatnonzero(index.annotated)
    sample = draw_matched(related_pairs(index, genes), genes, np.zeros(3, np.int64), [index], np.random.default_rng(0))
    assert (len(sample.related), sample.unmatched) == (0, 3)


def test_a_seed_decides_which_pairs_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gm_train.evaluation.pairs.matched_pairs.MAX_PAIRS", 12)
    index = index_of([set(range(5 * i, 5 * i + 5)) for i in range(6)])
    genes = np.flatnonzero(index.annotated)
    classes = match_classes(index, genes, np.ones(len(genes)), np.zeros(len(genes), np.bool_))
    related = related_pairs(index, genes)
    assert len(related) == 60
    first, again, other = (
        draw_matched(related, genes, classes, [index], np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert len(first.related) == 12
    assert np.array_equal(first.random, again.random)
    assert not np.array_equal(first.random, other.random)
    assert not np.array_equal(first.related, other.related)

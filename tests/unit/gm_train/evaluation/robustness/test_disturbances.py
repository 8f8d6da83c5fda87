"""Disturbed counts: thinning is binomial, and a gene is disturbed alike in all data sets."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from data_shards.tokens.tokenizer import Tokenizer
from gm_train.evaluation.cell_counts import CellCounts
from gm_train.evaluation.cells import EvaluationCells, read_cells
from gm_train.evaluation.robustness.disturbances import (
    CHEMISTRY_DEPTH,
    CHEMISTRY_SPREAD,
    DISTURBANCES,
    DROPPED,
    disturb,
    thin,
)
from tests.conftest import Atlas

BY_KEY = {d.key: d for d in DISTURBANCES}


@pytest.fixture(scope="module")
def cells(atlas: Atlas) -> EvaluationCells:
    return read_cells(atlas.store, atlas.files, Tokenizer.load(atlas.store))


def counts_of(values: list[list[int]]) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(np.array(values, dtype=np.float64))


@given(
    values=st.integers(1, 5).flatmap(
        lambda width: st.lists(st.lists(st.integers(0, 2000), min_size=width, max_size=width), min_size=1, max_size=6)
    ),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_thinned_counts_are_whole_and_never_more(values: list[list[int]], share: float, seed: int) -> None:
    counts = counts_of(values)
    before = counts.toarray()
    capture = np.full(counts.shape[1], share)
    thinned = thin(counts, capture, np.random.default_rng(seed))
    after = thinned.toarray()
    assert np.array_equal(after, np.rint(after))
    assert (after >= 0).all()
    assert (after <= before).all()
    assert (thinned.data > 0).all()
    assert np.array_equal(counts.toarray(), before)  # the input stays as it was
    if share in (0.0, 1.0):
        assert np.array_equal(after, before * share)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_thinned_counts_are_binomial(share: float) -> None:
    """Mean, variance and the share of zeros of 20,000 thinned counts of 10 agree with the distribution."""
    counts = counts_of([[10] * 20_000])
    thinned = thin(counts, np.full(20_000, share), np.random.default_rng(0)).toarray()[0]
    law = binom(10, share)
    assert thinned.mean() == pytest.approx(law.mean(), abs=5 * law.std() / np.sqrt(20_000))
    assert thinned.var() == pytest.approx(law.var(), rel=0.06)
    assert (thinned == 0).mean() == pytest.approx(law.pmf(0), abs=5 * np.sqrt(0.25 / 20_000))


def test_depth_is_that_of_its_name(cells: EvaluationCells) -> None:
    total = sum(part.counts.sum() for part in cells.counts.values())
    for key, share in (("counts_50", 0.5), ("counts_20", 0.2), ("counts_5", 0.05)):
        left = sum(part.counts.sum() for part in disturb(cells.counts, BY_KEY[key], seed=0).values())
        assert left / total == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / total))


def test_dropped_genes_are_gone_from_every_cell_and_others_stay_as_they_are(cells: EvaluationCells) -> None:
    whole = {which: part.counts.toarray() for which, part in cells.counts.items()}
    for seed in range(3):
        found = disturb(cells.counts, BY_KEY["genes"], seed)
        dropped = {
            which: ((part.counts.toarray() == 0).all(0) & (whole[which] > 0).any(0)) for which, part in found.items()
        }
        for which, part in found.items():
            assert np.array_equal(part.counts.toarray()[:, ~dropped[which]], whole[which][:, ~dropped[which]])
        seen = (whole[0] > 0).any(0) & (whole[1] > 0).any(0)
        assert np.array_equal(dropped[0][seen], dropped[1][seen])  # both files have the same genes in the same order
        assert abs(dropped[0][seen].mean() - DROPPED) < 0.25


def test_factors_of_a_chemistry_are_log_normal_and_drawn_once_for_a_gene() -> None:
    capture = BY_KEY["chemistry"].capture(100_000, np.random.default_rng(0))
    assert capture.max() == 1
    logs = np.log(capture[capture < np.quantile(capture, 0.5)] / CHEMISTRY_DEPTH)
    # The lower half is not cut off at 1: it is that of a normal distribution.
    assert logs.mean() == pytest.approx(-CHEMISTRY_SPREAD * np.sqrt(2 / np.pi), abs=0.02)
    assert np.quantile(capture, 0.5) == pytest.approx(CHEMISTRY_DEPTH, rel=0.02)


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda d: d.key)
def test_a_seed_decides_what_is_drawn(disturbance: object, cells: EvaluationCells) -> None:
    first, again, other = (disturb(cells.counts, disturbance, seed)[0].counts for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0


def test_a_gene_is_disturbed_alike_in_a_file_with_other_genes_in_another_order(cells: EvaluationCells) -> None:
    part = cells.counts[0]
    order = np.random.default_rng(5).permutation(part.counts.shape[1])[:50]
    other = CellCounts(
        part.counts[:, order], replace(part.columns, numbers=part.columns.numbers[order]), part.tokenizer
    )
    found = disturb({0: part, 1: other}, BY_KEY["genes"], seed=1)
    whole, some = found[0].counts[:, order].toarray(), found[1].counts.toarray()
    known = part.columns.numbers[order] >= 0
    assert np.array_equal(whole[:, known], some[:, known])


def test_counts_of_held_out_cells_give_their_tokens_and_expression(cells: EvaluationCells) -> None:
    """Undisturbed, they are ranked as for the evaluation, in the same order."""
    for which, part in cells.counts.items():
        numbers = np.flatnonzero(cells.held_out & (cells.data_set == which))
        assert part.n_cells == len(numbers)
        for ranks in ("plain", "dithered"):
            ours, theirs = part.ranked(ranks), cells.ranked(ranks).take(numbers)
            assert np.array_equal(ours.tokens, theirs.tokens)
            assert np.array_equal(ours.indptr, theirs.indptr)
        assert np.array_equal(part.expression().toarray(), cells.expression[numbers].toarray())

"""Naming hidden genes: against a slow reference, in any batches, and with predictors whose answer is known."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.config.schema import ModelConfig
from gm_train.evaluation.masked import masked_genes
from gm_train.evaluation.masked.masked_genes import MaskedCells, model_predictor
from gm_train.evaluation.reconstruction.reconstructed_order import name_genes, reconstruct
from gm_train.model.genemamba import GeneMamba
from tests.support.evaluation_cases import VOCABULARY, fixed, mask, ragged, random_cells


def slow(log_probs: Tensor, visible: list[int]) -> list[int]:
    """Take the likeliest free pair of a position and a gene that is not visible, again and again."""
    log_probs = log_probs.clone()
    log_probs[:, [*range(FIRST_GENE), *visible]] = -torch.inf
    log_probs -= log_probs.exp().sum(1, keepdim=True).log()
    named: dict[int, int] = {}
    while len(named) < len(log_probs):
        pairs = [
            (-float(log_probs[position, gene]), position, gene)
            for position in range(len(log_probs))
            for gene in range(FIRST_GENE, log_probs.shape[1])
            if position not in named and gene not in named.values() and gene not in visible
        ]
        _, position, gene = min(pairs)
        named[position] = gene
    return [named[position] for position in range(len(log_probs))]


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_genes_are_named_as_by_a_slow_reference(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    log_probs = torch.from_numpy(rng.normal(size=(n, VOCABULARY))).log_softmax(-1)
    visible = rng.permutation(np.arange(FIRST_GENE, VOCABULARY))[: VOCABULARY - FIRST_GENE - n]
    before = log_probs.clone()
    named = name_genes(log_probs, visible.astype(np.int64))
    assert named.tolist() == slow(log_probs, visible.tolist())
    assert torch.equal(log_probs, before)


def test_a_position_is_as_sure_as_it_is_of_the_genes_that_the_cell_does_not_show() -> None:
    """The first position is sure of a visible gene; of the others, it is surer of gene 2 than the second one is."""
    probabilities = torch.tensor([[0, 0, 0.08, 0.02, 0.9], [0, 0, 0.55, 0.44, 0.01]])
    assert name_genes(probabilities.log(), np.array([0, 1, 4], dtype=np.int64)).tolist() == [2, 3]


def test_of_equally_likely_genes_each_is_named_once() -> None:
    named = name_genes(torch.zeros(4, 6), np.array([0, 1], dtype=np.int64))
    assert sorted(named.tolist()) == [2, 3, 4, 5]


def all_pairs(predictor: object, masked: MaskedCells) -> list[tuple[list[int], list[int]]]:
    return sorted((t.tolist(), named.tolist()) for t, named in reconstruct(predictor, masked))  # type: ignore[arg-type]


def test_one_who_knows_names_every_gene_in_its_place() -> None:
    masked = mask(random_cells(40, seed=1))
    log_probs = torch.full((int(masked.hidden.sum()), VOCABULARY), -9.0)
    log_probs[torch.arange(len(log_probs)), torch.from_numpy(masked.cells.tokens[masked.hidden])] = -0.1
    pairs = all_pairs(fixed(log_probs), masked)
    assert len(pairs) == sum(1 for _ in masked.spans())
    assert all(truth == named for truth, named in pairs)


@pytest.mark.parametrize("seed", range(20))
def test_a_visible_gene_is_never_named_and_no_gene_twice(seed: int) -> None:
    masked = mask(random_cells(2, seed))
    generator = torch.manual_seed(seed)
    for number in range(masked.cells.n_cells):
        cell = mask(ragged([masked.cells.cell(number).tolist()]))
        log_probs = torch.randn(int(cell.hidden.sum()), VOCABULARY, generator=generator)
        for _, named in all_pairs(fixed(log_probs), cell):
            assert len(set(named)) == len(named)
            assert not set(named) & set(cell.visible.tolist())


def test_answers_may_come_in_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, n_layers=2, d_state=4, head_dim=4, chunk=4)
    model = GeneMamba(config, VOCABULARY).eval()
    masked = mask(random_cells(30, seed=3))
    at_once = all_pairs(model_predictor(model), masked)
    monkeypatch.setattr(masked_genes, "CHUNK_LOGITS", 2 * VOCABULARY)
    assert all_pairs(model_predictor(model), masked) == at_once

    positions = np.flatnonzero(masked.hidden)
    log_probs = torch.randn(len(positions), VOCABULARY, generator=torch.manual_seed(1))
    order = np.random.default_rng(0).permutation(len(positions))

    def one_by_one(cells: MaskedCells) -> Iterator[tuple[np.ndarray, Tensor]]:
        for i in order:
            yield positions[i : i + 1], log_probs[i : i + 1]

    assert all_pairs(one_by_one, masked) == all_pairs(fixed(log_probs), masked)


def test_a_predictor_must_answer_for_every_hidden_position_once() -> None:
    masked = mask(random_cells(30, seed=4))
    positions = np.flatnonzero(masked.hidden)
    answer = positions, torch.zeros(len(positions), VOCABULARY)

    def short(cells: MaskedCells) -> Iterator[tuple[np.ndarray, Tensor]]:
        yield positions[:-1], answer[1][:-1]

    def visible_too(cells: MaskedCells) -> Iterator[tuple[np.ndarray, Tensor]]:
        yield np.flatnonzero(~masked.hidden)[:1], answer[1][:1]
        yield answer

    for wrong in (lambda cells: iter([answer, answer]), lambda cells: iter(()), short, visible_too):
        with pytest.raises(ValueError, match="exactly once"):
            all_pairs(wrong, masked)

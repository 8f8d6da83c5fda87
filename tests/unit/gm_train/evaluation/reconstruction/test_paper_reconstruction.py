"""Reconstruction as published: copying gets what the paper reports, and the model is asked as published."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import PAD
from gm_train.config.schema import ModelConfig
from gm_train.evaluation.reconstruction import paper_reconstruction
from gm_train.evaluation.reconstruction.paper_reconstruction import (
    GROUP,
    PaperScore,
    copied_input,
    copy_machine,
    refuse_few,
    repeated_by,
    score_groups,
)
from gm_train.model.genemamba import GeneMamba
from tests.support.evaluation_cases import VOCABULARY, ragged, random_cells


@given(st.lists(st.integers(2, 30), min_size=GROUP, max_size=3 * GROUP + 4), st.integers(0, 1000))
def test_the_copy_machine_gets_l_dist_11_and_is_never_right(lengths: list[int], seed: int) -> None:
    """One token late in ten cells: one removed at the start, nine replaced between cells, one added at the end."""
    rng = np.random.default_rng(seed)
    cells = ragged([(2 + rng.permutation(40)[:length]).tolist() for length in lengths])
    scores = score_groups(cells, copy_machine(cells))
    assert len(scores) == len(lengths) // GROUP
    assert {(score.distance, score.exact) for score in scores} == {(11.0, 0.0)}


def test_the_copy_machine_gets_a_bleu_of_0_99_on_cells_of_usual_length() -> None:
    """The paper reports 0.987 to 0.998."""
    rng = np.random.default_rng(0)
    cells = ragged([(2 + rng.permutation(3000)[:1200]).tolist() for _ in range(GROUP)])
    (score,) = score_groups(cells, copy_machine(cells))
    assert 0.99 < score.bleu < 0.999


def test_copied_input_is_perfect() -> None:
    cells = random_cells(2 * GROUP, seed=1, vocabulary_size=40)
    assert score_groups(cells, copied_input(cells)) == [PaperScore(0.0, 1.0, 100.0)] * 2


def test_the_copy_machine_answers_with_the_next_token_of_the_same_cell() -> None:
    cells = ragged([[2, 3, 4], [], [5], [6, 7]])
    assert copy_machine(cells).tolist() == [3, 4, PAD, PAD, 7, PAD]
    assert copy_machine(ragged([[]])).tolist() == []


def test_groups_are_scored_by_themselves_and_an_incomplete_one_is_left_out() -> None:
    cells = random_cells(GROUP + 3, seed=2, vocabulary_size=40)
    answers = copied_input(cells)
    answers[cells.indptr[GROUP] :] = PAD
    assert score_groups(cells, answers) == [PaperScore(0.0, 1.0, 100.0)]
    answers[0] = PAD
    (score,) = score_groups(cells, answers)
    assert score.distance == 1.0
    assert score.exact == pytest.approx(100 * (1 - 1 / cells.indptr[GROUP]))


def test_the_model_sees_whole_cells_and_answers_alike_in_batches_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, n_layers=2, d_state=4, head_dim=4, chunk=4)
    model = GeneMamba(config, VOCABULARY).eval()
    cells = random_cells(25, seed=5)
    monkeypatch.setattr(paper_reconstruction, "CHUNK_LOGITS", 3 * VOCABULARY)
    answers = repeated_by(model, cells)
    for number in range(cells.n_cells):
        tokens = torch.from_numpy(cells.cell(number).astype(np.int64))[None]
        if tokens.numel():
            with torch.no_grad():
                alone = model.logits(model(tokens, torch.ones_like(tokens)))[0].argmax(-1)
            assert answers[cells.indptr[number] : cells.indptr[number + 1]].tolist() == alone.tolist()


def test_too_few_cells_for_a_group_are_refused() -> None:
    refuse_few(GROUP)
    with pytest.raises(DataError, match=r"joins 10 cells, but 9 held-out cells are scored: .*--max-cells"):
        refuse_few(GROUP - 1)

"""Masked-gene scores against slow references, and the model's predictor in batches against one cell at a time."""

import numpy as np
import pytest
import torch

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import MASK
from gm_train.config.schema import ModelConfig
from gm_train.embedding.embed_cells import embed_cells
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.evaluation.masked import masked_genes
from gm_train.evaluation.masked.masked_genes import model_predictor, score_masked
from gm_train.evaluation.principal_components import principal_components
from gm_train.model.genemamba import GeneMamba
from tests.support.evaluation_cases import VOCABULARY, answers, fixed, mask, ragged, random_cells


@pytest.fixture
def model() -> GeneMamba:
    torch.manual_seed(0)
    return GeneMamba(ModelConfig(d_model=8, n_layers=2, d_state=4, head_dim=4, chunk=4), VOCABULARY).eval()


def test_bf16_is_for_the_layers_alone(model: GeneMamba) -> None:
    masked = mask(random_cells(20, seed=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    exact, narrow = (answers(model_predictor(model, precision), masked) for precision in ("fp32", "bf16"))
    assert not np.array_equal(exact, narrow)
    np.testing.assert_allclose(narrow, exact, atol=0.2)
    # bfloat16 logits of one size would have at most 256 values, so that genes tie.
    assert len(np.unique(narrow)) > 0.9 * narrow.size


def test_take_and_concatenate_keep_every_cell() -> None:
    cells = random_cells(20, seed=1)
    order = np.random.default_rng(0).permutation(20)
    taken = cells.take(order)
    for new, old in enumerate(order):
        assert taken.cell(new).tolist() == cells.cell(old).tolist()
    both = Ragged.concatenate([cells, taken])
    assert both.cell(20).tolist() == taken.cell(0).tolist()
    assert both.n_cells == 40


def test_batches_hold_every_cell_with_tokens_once() -> None:
    cells = random_cells(40, seed=2)
    seen = []
    for numbers, input_ids, segment in padded_batches(cells, torch.device("cpu")):
        assert not segment[len(numbers) :].any()
        for number, row, real in zip(numbers, input_ids.numpy(), segment.numpy() > 0, strict=False):
            assert row[real].tolist() == cells.cell(number).tolist()
            assert not row[~real].any()
            seen.append(number)
    assert sorted(seen) == np.flatnonzero(cells.lengths).tolist()


def test_hidden_positions_show_nothing_but_the_mask() -> None:
    masked = mask(random_cells(50, seed=3))
    assert masked.hidden.any()
    assert (masked.visible[masked.hidden] == MASK).all()
    assert (masked.visible == masked.cells.tokens)[~masked.hidden].all()


def test_score_agrees_with_a_slow_reference() -> None:
    masked = mask(random_cells(30, seed=4))
    targets = masked.cells.tokens[masked.hidden]
    log_probs = torch.log_softmax(torch.randn(len(targets), VOCABULARY, generator=torch.manual_seed(0)), dim=1)
    ranks = [sorted(row.tolist(), reverse=True).index(row[t]) for row, t in zip(log_probs, targets, strict=True)]
    score = score_masked(fixed(log_probs), masked)  # type: ignore[arg-type]
    assert score.cross_entropy == pytest.approx(-np.mean([r[t] for r, t in zip(log_probs, targets, strict=True)]))
    assert score.top1 == pytest.approx(100 * np.mean([rank < 1 for rank in ranks]))
    assert score.top10 == pytest.approx(100 * np.mean([rank < 10 for rank in ranks]))


def test_equally_likely_genes_score_as_chance() -> None:
    masked = mask(random_cells(30, seed=4))
    flat = torch.full((int(masked.hidden.sum()), VOCABULARY), -np.log(VOCABULARY))
    score = score_masked(fixed(flat), masked)  # type: ignore[arg-type]
    assert score.top1 == pytest.approx(100 / VOCABULARY)
    assert score.top10 == pytest.approx(1000 / VOCABULARY)


def test_a_predictor_must_answer_for_every_hidden_position_once() -> None:
    masked = mask(random_cells(30, seed=4))

    def twice(cells: masked_genes.MaskedCells):  # type: ignore[no-untyped-def]
        for _ in range(2):
            yield np.flatnonzero(cells.hidden), torch.zeros(int(cells.hidden.sum()), VOCABULARY)

    with pytest.raises(ValueError, match="exactly once"):
        score_masked(twice, masked)
    with pytest.raises(ValueError, match="exactly once"):
        score_masked(lambda cells: iter(()), masked)
    with pytest.raises(DataError, match="--max-cells"):
        score_masked(twice, mask(ragged([[]])))


def test_the_model_predicts_alike_in_batches_and_alone(model: GeneMamba, monkeypatch: pytest.MonkeyPatch) -> None:
    masked = mask(random_cells(25, seed=5))
    monkeypatch.setattr(masked_genes, "CHUNK_LOGITS", 3 * VOCABULARY)
    batched = answers(model_predictor(model), masked)
    alone = []
    for span, hidden in masked.spans():
        visible = torch.from_numpy(masked.visible[span])[None]
        with torch.no_grad():
            logits = model.logits(model(visible, torch.ones_like(visible)))[0, hidden - span.start]
        alone.append(torch.log_softmax(logits, dim=-1))
    np.testing.assert_allclose(batched, torch.cat(alone).double().numpy(), atol=1e-5)


def test_embeddings_are_means_over_tokens_and_nan_without_tokens(model: GeneMamba) -> None:
    cells = random_cells(25, seed=6)
    embeddings = embed_cells(model, cells)
    for number, embedding in enumerate(embeddings):
        tokens = torch.from_numpy(cells.cell(number).astype(np.int64))[None]
        if tokens.numel():
            with torch.no_grad():
                expected = model(tokens, torch.ones_like(tokens))[0].mean(0).numpy()
            np.testing.assert_allclose(embedding, expected, atol=1e-5)
        else:
            assert np.isnan(embedding).all()


def test_components_are_fitted_on_training_cells_only() -> None:
    import scipy.sparse

    rng = np.random.default_rng(0)
    expression = rng.poisson(1.0, (40, 12)).astype(np.float32)
    train = np.arange(40) < 30
    changed = expression.copy()
    changed[-1] += 5
    first, second = (principal_components(scipy.sparse.csr_matrix(x), train) for x in (expression, changed))
    np.testing.assert_array_equal(first[:-1], second[:-1])
    assert first.shape == (40, 11)

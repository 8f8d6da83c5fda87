"""Scores of pairs of genes, against slow references and libraries."""

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.metrics import roc_auc_score

from gm_train.config.schema import ModelConfig
from gm_train.evaluation.pairs.gene_vectors import auroc, contextual_vectors, correlations, cosines, static_vectors
from gm_train.model.genemamba import GeneMamba
from tests.support.evaluation_cases import VOCABULARY, random_cells

PAIRS = np.array([[2, 3], [3, 4], [5, 9], [2, 2]])


@pytest.fixture(scope="module")
def model() -> GeneMamba:
    torch.manual_seed(0)
    return GeneMamba(ModelConfig(d_model=8, n_layers=2, d_state=4, head_dim=4, chunk=4), VOCABULARY).eval()


def test_contextual_vectors_are_means_of_states_computed_cell_by_cell(model: GeneMamba) -> None:
    cells = random_cells(30, seed=1)
    states: dict[int, list[np.ndarray]] = {}
    with torch.inference_mode():
        for number in range(cells.n_cells):
            tokens = cells.cell(number).astype(np.int64)
            if not len(tokens):
                continue
            found = model(torch.from_numpy(tokens)[None], torch.ones(1, len(tokens), dtype=torch.int64))[0].numpy()
            for token, state in zip(tokens.tolist(), found, strict=True):
                states.setdefault(token, []).append(state)
    vectors = contextual_vectors(model, cells)
    assert vectors.shape == (VOCABULARY, 8)
    for token in range(VOCABULARY):
        expected = np.mean(states[token], axis=0) if token in states else np.zeros(8)
        np.testing.assert_allclose(vectors[token], expected, rtol=1e-4, atol=1e-5)


def test_static_vectors_are_the_input_embeddings(model: GeneMamba) -> None:
    assert np.array_equal(static_vectors(model), model.embedding.weight.detach().numpy())


def test_cosines_take_the_mean_of_the_genes_off() -> None:
    vectors = np.random.default_rng(0).normal(3.0, 1.0, (VOCABULARY, 5)).astype(np.float32)
    genes = np.arange(2, 10)
    centred = vectors.astype(float) - vectors[genes].astype(float).mean(0)
    expected = [
        centred[a] @ centred[b] / np.linalg.norm(centred[a]) / np.linalg.norm(centred[b]) for a, b in PAIRS.tolist()
    ]
    np.testing.assert_allclose(cosines(vectors, genes, PAIRS), expected, rtol=1e-6)
    np.testing.assert_allclose(cosines(vectors + np.float32(7), genes, PAIRS), expected, rtol=1e-4)


def test_correlations_agree_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gm_train.evaluation.pairs.gene_vectors._GROUP", 3)  # several groups
    rng = np.random.default_rng(0)
    expression = (rng.random((40, 12)) * (rng.random((40, 12)) < 0.4)).astype(np.float32)
    expression[:, 7] = 0.0  # never expressed
    pairs = np.array([[a, b] for a in range(12) for b in range(a)])
    found = correlations(scipy.sparse.csr_matrix(expression), pairs)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nan_to_num(np.corrcoef(expression.T))[pairs[:, 0], pairs[:, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_auroc_is_in_percent_and_ties_count_as_half() -> None:
    assert auroc(np.array([3.0, 4.0, 1.0, 2.0])) == 100
    assert auroc(np.array([1.0, 1.0, 1.0, 1.0])) == 50
    scores = np.random.default_rng(0).normal(size=60)
    assert auroc(scores) == pytest.approx(100 * roc_auc_score([1] * 30 + [0] * 30, scores))

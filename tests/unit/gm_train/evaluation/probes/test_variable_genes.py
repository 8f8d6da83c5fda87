"""The control of variable genes: chosen on training cells alone, the most variable ones."""

import numpy as np
import scipy.sparse

from gm_train.evaluation.probes.variable_genes import N_GENES, variable_genes


def test_the_most_variable_genes_of_the_training_cells_are_taken_in_their_order() -> None:
    rng = np.random.default_rng(0)
    expression = (rng.random((40, 700)) < 0.3) * rng.random((40, 700)).astype(np.float32)
    train = np.arange(40) < 30
    expression[train, 20] = [9.0, 0.0] * 15
    expression[train, 10] = 0.5
    # Held-out cells must not decide: a gene that varies among them alone is not taken.
    expression[~train, 10] = np.linspace(0, 100, 10)
    found = variable_genes(scipy.sparse.csr_matrix(expression), train)
    assert found.shape == (40, N_GENES)
    assert found.dtype == np.float32
    expected = np.sort(np.argsort(-expression[train].astype(np.float64).var(0))[:N_GENES])
    assert 20 in expected
    assert 10 not in expected
    assert np.array_equal(found, expression[:, expected])


def test_fewer_genes_are_all_taken() -> None:
    expression = scipy.sparse.random(10, 7, 0.5, format="csr", dtype=np.float32, random_state=0)
    assert np.array_equal(variable_genes(expression, np.arange(10) < 6), expression.toarray())

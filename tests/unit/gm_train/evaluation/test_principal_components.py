"""Loadings from components are those of the fit."""

import numpy as np
import pytest
import scipy.sparse

from gm_train.evaluation.principal_components import fit_components, loadings


def test_loadings_are_those_of_the_fitted_components() -> None:
    x = scipy.sparse.random(60, 30, 0.4, "csr", np.float32, rng=np.random.default_rng(0))
    fitted = fit_components(x)
    found = loadings(x, fitted.transform(x).astype(np.float32))
    assert found == pytest.approx(fitted.components_.T, abs=1e-4)


def test_a_component_without_variance_has_no_loadings() -> None:
    x = scipy.sparse.csr_matrix(np.eye(3, dtype=np.float32))
    assert not loadings(x, np.zeros((3, 2), np.float32)).any()

"""A trained run and cells with everything that an AnnData can hold."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


@pytest.fixture(scope="session")
def run_dir(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps over the genes of `atlas`."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=4", "optim.warmup_steps=2"))
    return run


@pytest.fixture
def rich(atlas: Atlas) -> ad.AnnData:
    """Cells of `atlas`, two of them without a count, with every kind of annotation."""
    cells = ad.read_h5ad(atlas.files[1])
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(cells.X)
    keep = np.ones(cells.n_obs, np.float32)
    keep[[3, 20]] = 0
    counts = sp.csr_matrix(sp.diags(keep).astype(np.float32) @ counts)
    counts.eliminate_zeros()
    n_obs, n_vars = cells.shape
    cells.X = counts.log1p()
    cells.layers["counts"] = counts
    cells.layers["dense"] = counts.toarray()
    cells.layers["by gene"] = sp.csc_matrix(counts)
    cells.raw = ad.AnnData(counts, obs=cells.obs, var=cells.var)
    cells.obs["stage"] = pd.Categorical(rng.choice(["early", "late"], n_obs), ["early", "late"], ordered=True)
    cells.obs["some"] = pd.Categorical(np.where(rng.random(n_obs) < 0.3, None, "ä"))
    cells.obs["n"] = pd.array([None, *range(1, n_obs)], dtype="Int32")
    cells.obs["is_good"] = pd.array([None, *(rng.random(n_obs - 1) < 0.5)], dtype="boolean")
    cells.obs["score"] = rng.random(n_obs)
    cells.obs["passed"] = rng.random(n_obs) < 0.5
    cells.obs["barcode"] = [f"barcode {i} €" for i in range(n_obs)]
    cells.var["length"] = rng.integers(100, size=n_vars)
    cells.obsm["X_pca"] = rng.random((n_obs, 3)).astype(np.float32)
    cells.obsm["table"] = pd.DataFrame({"a": rng.random(n_obs)}, index=cells.obs_names)
    cells.varm["loadings"] = rng.random((n_vars, 2))
    cells.obsp["neighbours"] = sp.random(n_obs, n_obs, 0.1, format="csr", random_state=0)
    cells.varp["linked"] = sp.random(n_vars, n_vars, 0.1, format="csc", random_state=0)
    cells.uns |= {
        "text": "one", "number": 3, "share": 0.5, "yes": True, "empty": np.zeros((0, 4)), "names": np.array(["a", "b"]),
        "nested": {"deep": {"matrix": sp.eye(4, format="csr"), "values": np.arange(6).reshape(2, 3)}, "nothing": {}},
        "table": pd.DataFrame({"a": [1, 2], "b": pd.Categorical(["x", "y"])}, index=["r", "s"]),
        "records": np.array([("g1", 1.5), ("g2", 2.5)], dtype=[("name", "U8"), ("value", "f4")]),
    }  # fmt: skip
    return cells

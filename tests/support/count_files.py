"""Small AnnData files for tests."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def draw_counts(n_cells: int, n_genes: int, seed: int = 0) -> sp.csr_matrix:
    """Draw counts with many ones and zeros, and at least one count per cell.

    Args:
        n_cells: number of rows.
        n_genes: number of columns.
        seed: of the counts.

    Returns:
        csr_matrix (n_cells, n_genes), float32.
    """
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.lognormal(-1.0, 1.0, n_genes), (n_cells, n_genes)).astype(np.float32)
    counts[np.arange(n_cells), rng.integers(n_genes, size=n_cells)] += 1
    return sp.csr_matrix(counts)


def write_counts(
    path: Path,
    counts: Any,
    genes: list[str] | None = None,
    obs: dict[str, Any] | None = None,
    var: dict[str, Any] | None = None,
    layers: dict[str, Any] | None = None,
) -> Path:
    """Write an AnnData file and return its path.

    Args:
        path: the file; the suffix `.zarr` writes an AnnData-Zarr, any other an `.h5ad`.
        counts: X, (n_cells, n_genes), in any storage.
        genes: index of `var`; g0000, g0001, … by default.
        obs: columns of `obs`.
        var: columns of `var`.
        layers: further matrices, by name.
    """
    n_cells, n_genes = counts.shape
    genes = genes or [f"g{i:04d}" for i in range(n_genes)]
    data = ad.AnnData(
        counts,
        obs=pd.DataFrame(obs or {}, index=[f"c{i}" for i in range(n_cells)]),
        var=pd.DataFrame(var or {}, index=genes),
        layers=layers,
    )
    if path.suffix == ".zarr":
        data.write_zarr(path)
    else:
        data.write_h5ad(path)
    return path

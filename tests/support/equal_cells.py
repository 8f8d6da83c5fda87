"""Compare what anndata reads from two files, exactly: values, types and order."""

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

PARTS = ("X", "obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns")


def assert_same_cells(one: ad.AnnData, other: ad.AnnData) -> None:
    """Compare every part of two AnnData, raw included."""
    for part in PARTS:
        assert_same(getattr(one, part), getattr(other, part), part)
    assert (one.raw is None) == (other.raw is None)
    if one.raw is not None:
        for part in ("X", "var", "varm"):
            assert_same(getattr(one.raw, part), getattr(other.raw, part), f"raw/{part}")


def assert_same(one: Any, other: Any, where: str) -> None:
    """Compare two elements; `where` names them in messages."""
    if isinstance(one, Mapping):
        assert sorted(one) == sorted(other), where
        for name in one:
            assert_same(one[name], other[name], f"{where}/{name}")
        return
    assert type(one) is type(other), where
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True, obj=where)
    elif sp.issparse(one):
        assert (one.format, one.dtype, one.shape) == (other.format, other.dtype, other.shape), where
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), where)
    elif isinstance(one, np.ndarray):
        # anndata reads text from Zarr and from HDF5 as two dtypes.
        is_text = one.dtype.kind in "OT" and other.dtype.kind in "OT"
        assert is_text or one.dtype == other.dtype, where
        np.testing.assert_array_equal(one, other, where)
    else:
        assert one == other, where

"""Vectors that were made elsewhere: each cell gets its own, and what does not fit is refused."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from data_shards.counts.filters import CellFilter
from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.evaluation.cells import EvaluationCells, read_cells
from gm_train.evaluation.other_embeddings import read_embedding, read_embeddings
from tests.conftest import write_cells

N_CELLS = 60


def read(folder: Path, **obsm: object) -> EvaluationCells:
    """Cells of a file with these arrays in obsm; some of its cells are filtered out."""
    path = write_cells(folder / "cells.h5ad", N_CELLS, 40, seed=3)
    source = ad.read_h5ad(path)
    for name, value in obsm.items():
        if isinstance(value, pd.DataFrame):
            value = value.set_index(source.obs_names)
        source.obsm[name] = value
    source.write_h5ad(path)
    least = int(np.median((source.X.toarray() > 0).sum(1)))
    make_medians([path], folder / "medians.zarr", say=lambda line: None)
    make_store(
        [path],
        folder / "medians.zarr",
        folder / "store.zarr",
        cells=CellFilter(min_genes=least),
        splits=SplitOptions(by="cell", validation=0.3),
        say=lambda line: None,
    )
    return read_cells(folder / "store.zarr", [path], Tokenizer.load(folder / "store.zarr"))


VECTORS = np.random.default_rng(0).normal(size=(N_CELLS, 3)).astype(np.float32)


def test_a_cell_gets_its_row(tmp_path: Path) -> None:
    cells = read(
        tmp_path,
        X_dense=VECTORS.astype(np.float64),
        X_sparse=scipy.sparse.csr_matrix(VECTORS),
        X_frame=pd.DataFrame(VECTORS, columns=["a", "b", "c"]),
    )
    np.save(tmp_path / "theirs.npy", VECTORS)
    assert 10 < len(cells.row) < N_CELLS
    found = read_embeddings(["obsm:X_dense", "obsm:X_sparse", "obsm:X_frame", str(tmp_path / "theirs.npy")], cells)
    assert list(found) == ["X_dense", "X_sparse", "X_frame", "theirs"]
    for values in found.values():
        assert values.dtype == np.float32
        assert np.array_equal(values, VECTORS[cells.source_row])
    # Rows of the file, not of the store.
    counts = ad.read_h5ad(tmp_path / "cells.h5ad").X.toarray()
    assert [int((row > 0).sum()) for row in counts[cells.source_row]] == cells.plain.lengths.tolist()


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> EvaluationCells:
    holed = VECTORS.copy()
    holed[:, 1] = np.nan
    return read(tmp_path_factory.mktemp("cells"), X_pca=VECTORS, X_holed=holed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("obsm:X_scVI", r"no obsm\['X_scVI'\]; there is X_holed, X_pca"),
        ("obsm:X_holed", r"obsm\['X_holed'\]: row \d+ \(from 0\) has a value that is not finite"),
        ("missing.npy", r"missing\.npy: no such file; an array of the count files is named obsm:KEY"),
        ("short.npy", r"short\.npy: has 59 rows, but .*cells\.h5ad has 60 cells"),
        ("long.npy", r"long\.npy: has 61 rows, but .*cells\.h5ad has 60 cells"),
        ("empty.npy", r"empty\.npy: not an array that numpy\.save wrote"),
        ("several.npz", r"several\.npz: holds several arrays: save one with numpy\.save"),
        ("flat.npy", r"flat\.npy: is float32 of shape \(60,\); wanted are numbers, cells x features"),
        ("text.npy", r"text\.npy: is <U1 of shape \(60, 1\)"),
        ("objects.npy", r"objects\.npy: not an array that numpy\.save wrote \(.*objects"),
    ],
)
def test_what_does_not_fit_is_refused(given: str, message: str, cells: EvaluationCells, tmp_path: Path) -> None:
    arrays = {
        "short": VECTORS[:-1],
        "long": np.concatenate([VECTORS, VECTORS[:1]]),
        "flat": VECTORS[:, 0],
        "text": np.full((N_CELLS, 1), "a"),
        "objects": np.full((N_CELLS, 1), None),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", VECTORS)
    with pytest.raises(DataError, match=message):
        read_embedding(given if given.startswith("obsm:") else str(tmp_path / given), cells)


def test_names_of_other_rows_are_refused(cells: EvaluationCells, tmp_path: Path) -> None:
    np.save(tmp_path / "PCA.npy", VECTORS)
    with pytest.raises(DataError, match=r"another row is called 'PCA': rename"):
        read_embeddings([str(tmp_path / "PCA.npy")], cells)
    with pytest.raises(DataError, match=r"another row is called 'X_pca'"):
        read_embeddings(["obsm:X_pca", "obsm:X_pca"], cells)

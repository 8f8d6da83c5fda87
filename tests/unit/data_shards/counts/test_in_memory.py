"""Counts of an AnnData in memory are those of the same cells in a file."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.gene_ids import find_gene_ids
from data_shards.counts.in_memory import counts_in_memory
from data_shards.errors import DataError
from tests.support.count_files import draw_counts, write_counts

IDS = [f"ENSG{i:011d}" for i in range(30)]


def everything(counts: CountFile) -> np.ndarray:
    with counts:
        return sp.vstack([chunk for _, chunk in counts.chunks(7)]).toarray()


@pytest.mark.parametrize("storage", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("where", [{}, {"layer": "counts"}, {"raw": True}])
def test_counts_are_those_of_a_file(tmp_path: Path, storage: Any, where: dict[str, Any]) -> None:
    counts = draw_counts(20, 30)
    stored = counts.toarray() if storage is np.asarray else storage(counts)
    cells = ad.AnnData(stored, var=pd.DataFrame({"gene_ids": IDS}, index=[f"g{i}" for i in range(30)]))
    cells.layers["counts"] = stored * 2
    cells.raw = ad.AnnData(stored * 3, var=cells.var)
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    options = CountOptions(**where)
    np.testing.assert_array_equal(everything(counts_in_memory(cells, options)), everything(open_counts(path, options)))
    with counts_in_memory(cells, options) as opened:
        assert find_gene_ids(opened).ids == tuple(IDS)


def test_views_and_backed_cells(tmp_path: Path) -> None:
    counts = draw_counts(20, 30)
    cells = ad.read_h5ad(write_counts(tmp_path / "a.h5ad", counts))
    np.testing.assert_array_equal(everything(counts_in_memory(cells[3:9])), counts[3:9].toarray())
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    np.testing.assert_array_equal(everything(counts_in_memory(backed)), counts.toarray())
    np.testing.assert_array_equal(everything(counts_in_memory(backed[3:9])), counts[3:9].toarray())


def test_matrices_that_are_not_there() -> None:
    cells = ad.AnnData(draw_counts(4, 5), layers={"counts": draw_counts(4, 5)})
    for options, message in (
        (CountOptions(layer="x"), r"in memory: no layer 'x': .* one of: counts"),
        (CountOptions(raw=True), "in memory: has no raw counts"),
        (CountOptions(gene_column="x"), "in memory: no column 'x' in var"),
    ):
        with pytest.raises(DataError, match=message):
            counts_in_memory(cells, options)
    with pytest.raises(DataError, match="in memory: has no X"):
        counts_in_memory(ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"])))


@pytest.mark.parametrize(
    "ids",
    [
        [None, *IDS[1:28], np.nan, ""],
        pd.Categorical([None, *IDS[1:29], None]),
        [np.nan, *range(1, 29), np.nan],
        pd.array([None, *range(1, 29), None], dtype="Int64"),
    ],
    ids=["texts", "categories", "numbers", "integers"],
)
@pytest.mark.parametrize("is_raw", [False, True])
def test_genes_without_an_id_are_those_of_a_file(tmp_path: Path, ids: Any, is_raw: bool) -> None:
    """A missing id is no id: not one named "nan"."""
    counts = draw_counts(20, 30)
    cells = ad.AnnData(counts, var=pd.DataFrame({"mine": ids}, index=[f"g{i}" for i in range(30)]))
    cells.raw = cells
    cells.write_h5ad(tmp_path / "cells.h5ad")
    options = CountOptions(gene_column="mine", raw=is_raw)
    with open_counts(tmp_path / "cells.h5ad", options) as stored, counts_in_memory(cells, options) as opened:
        expected, found = find_gene_ids(stored, min_mapped=0), find_gene_ids(opened, min_mapped=0)
    assert found == expected
    assert found.ids.count(None) >= 2
    assert found.report.repeated == 0

"""Which cells, genes, annotations and values a store keeps."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from data_shards.counts.count_file import open_counts
from data_shards.counts.filters import CellFilter
from data_shards.counts.gene_ids import GeneTable
from data_shards.errors import DataError
from data_shards.inspect.store_summary import StoreSummary
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from data_shards.tokens.vocabulary import Vocabulary
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import build, quiet, read

IDS = ["ENSG00000198888", "ENSG00000141510", "ENSG00000198763"]


def kept_rows(store: Path, name: str = "a") -> list[int]:
    """Rows of the source file whose cells the store keeps."""
    return pd.read_parquet(store / name / "obs.parquet")["source_row"].tolist()


@pytest.mark.parametrize("how", ["index", "lower case", "feature_name", "gene table"])
def test_cells_with_too_much_mitochondrial_rna_are_left_out(tmp_path: Path, how: str) -> None:
    """Symbols come from the index or a column of var, or from the gene table; a cell exactly at the limit is kept."""
    counts = sp.csr_matrix(np.array([[1, 9, 0], [1, 3, 1], [2, 2, 1], [0, 4, 0], [1, 4, 0]], np.float32))
    symbols = ["MT-ND1", "TP53", "MT-ND2"]
    table = GeneTable(tuple(IDS), tuple(symbols)) if how == "gene table" else None
    genes = {"index": symbols, "lower case": ["mt-Nd1", "Tp53", "mt-Nd2"]}.get(how, IDS)
    var = {"feature_name": symbols} if how == "feature_name" else None
    path = write_counts(tmp_path / "a.h5ad", counts, genes, var=var)
    make_medians([path], tmp_path / "m.zarr", gene_table=table, say=quiet)
    lines: list[str] = []
    manifest = build(tmp_path, [path], cells=CellFilter(max_mito=0.2), say=lines.append)
    assert kept_rows(tmp_path / "s.zarr") == [0, 3, 4]
    assert manifest.datasets[0].filtered_cells == 2
    assert manifest.datasets[0].filters == {"min_genes": 0, "min_counts": 0.0, "max_mito": 0.2, "where": []}
    assert any("2 mitochondrial genes" in line for line in lines)


def test_mitochondrial_genes_that_cannot_be_told_are_said(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(5, 3), IDS)
    with pytest.raises(DataError, match=r"a\.h5ad: --max-mito: no mitochondrial gene .*feature_name.*--gene-table"):
        build(tmp_path, [path], cells=CellFilter(max_mito=0.1))


def test_cells_are_kept_where_boolean_columns_are_true(tmp_path: Path) -> None:
    obs = {
        "is_primary_data": np.array([True, True, False, True, True, True]),
        "good": pd.array([True, False, True, None, True, True], dtype="boolean"),
        "donor": list("xxyyzz"),
        "score": np.arange(6.0),
    }
    path = write_counts(tmp_path / "a.h5ad", draw_counts(6, 5), obs=obs)
    build(tmp_path, [path], cells=CellFilter(where=("is_primary_data", "good")))
    assert kept_rows(tmp_path / "s.zarr") == [0, 4, 5]
    # A filter may use a column that is not kept.
    build(tmp_path, [path], "o.zarr", cells=CellFilter(where=("good",)), obs_columns=["score"])
    assert kept_rows(tmp_path / "o.zarr") == [0, 2, 4, 5]
    assert "good" not in pq.read_schema(tmp_path / "o.zarr/a/obs.parquet").names
    with pytest.raises(DataError, match=r"no column 'nothing' in obs: --where can be one of is_primary_data, good"):
        build(tmp_path, [path], "x.zarr", cells=CellFilter(where=("nothing",)))
    with pytest.raises(DataError, match=r"'score' of obs is not boolean: --where can be one of is_primary_data, good$"):
        build(tmp_path, [path], "x.zarr", cells=CellFilter(where=("score",)))


def test_columns_of_obs_that_are_kept(tmp_path: Path) -> None:
    obs = {"donor_id": ["p", "q"] * 10, "cell_type": ["t"] * 20, "batch": ["b"] * 20}
    path = write_counts(tmp_path / "a.h5ad", draw_counts(20, 5), obs=obs)
    lines: list[str] = []
    (entry,) = build(tmp_path, [path], obs_columns=["cell_type"], say=lines.append).datasets
    # The donor column is kept too: the split needs it, also when data sets are added later.
    assert pq.read_schema(tmp_path / "s.zarr/a/obs.parquet").names == [
        "cell_type", "donor_id", "source_row", "cell_id",
    ]  # fmt: skip
    assert (entry.obs_columns, entry.split_by) == (["cell_type"], "donor")
    assert any("'donor_id' of obs is kept too" in line for line in lines)
    build(tmp_path, [path], "t.zarr", obs_columns=["cell_type", "cell_type"])
    assert (tmp_path / "t.zarr/a/obs.parquet").read_bytes() == (tmp_path / "s.zarr/a/obs.parquet").read_bytes()
    build(tmp_path, [path], "n.zarr", obs_columns=[], splits=SplitOptions(by="none"))
    assert pq.read_schema(tmp_path / "n.zarr/a/obs.parquet").names == ["source_row", "cell_id"]
    with pytest.raises(DataError, match=r"no column 'who' in obs: --obs-columns can name donor_id, cell_type, batch"):
        build(tmp_path, [path], "x.zarr", obs_columns=["who"])


def test_denied_genes_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    # "AMB" is a symbol of two genes: both are denied.
    table = GeneTable((*IDS, "ENSG00000000009"), ("MT-ND1", "TP53", "AMB", "AMB"))
    path = write_counts(tmp_path / "a.h5ad", draw_counts(20, 4), [*IDS, "ENSG00000000009"])
    make_medians([path], tmp_path / "m.zarr", gene_table=table, say=quiet)
    deny = tmp_path / "deny.txt"
    deny.write_text("AMB\nnobody\n")
    lines: list[str] = []
    manifest = build(tmp_path, [path], deny_file=deny, say=lines.append)
    assert Vocabulary.load(tmp_path / "s.zarr/vocabulary.json").genes == (IDS[1], IDS[0])
    assert manifest.options["deny_file"] == "deny.txt"
    assert any("deny.txt: 2 of 2 genes are left out" in line for line in lines)
    # Only the remaining genes are ranked; the hash that breaks ties covers all genes.
    assert set(read(tmp_path / "s.zarr", "a/tokens").tolist()) == {2, 3}
    deny.write_text("nobody\n")
    with pytest.raises(DataError, match=r"deny\.txt: none of its 1 genes \(nobody …\) has a median"):
        build(tmp_path, [path], "x.zarr", deny_file=deny)
    deny.write_text("\n".join(table.ids))
    with pytest.raises(DataError, match=r"deny\.txt: lists all 4 genes"):
        build(tmp_path, [path], "x.zarr", deny_file=deny)
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        build(tmp_path, [path], "x.zarr", deny_file=tmp_path / "none.txt")


def test_values_are_the_normalised_expression_behind_each_token(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(40, 30))
    plain = build(tmp_path, [path], top_k=20)
    manifest = build(tmp_path, [path], "v.zarr", top_k=20, keep_values=True)
    store = tmp_path / "v.zarr"
    assert (plain.values, manifest.values) == (False, True)
    assert manifest.datasets[0].content_hash != plain.datasets[0].content_hash
    tokens, indptr, values = (read(store, f"a/{array}") for array in ("tokens", "indptr", "values"))
    np.testing.assert_array_equal(tokens, read(tmp_path / "s.zarr", "a/tokens"))
    assert values.dtype == np.float32
    with open_counts(path) as file:
        ((_, counts),) = file.chunks()
    normal = counts.toarray() / counts.toarray().sum(1, keepdims=True) * 10_000 / np.load(store / "medians.npy")
    cell = np.repeat(np.arange(40), np.diff(indptr))
    np.testing.assert_allclose(values, normal[cell, tokens.astype(int) - 2], rtol=2e-7)
    # Values never increase from rank to rank, without any tolerance.
    assert all(np.all(np.diff(values[a:b]) <= 0) for a, b in pairwise(indptr))
    assert Manifest.load(store) == manifest
    # With dither the values are those of dithered counts: within 0.5 of the count, and not the count itself.
    build(tmp_path, [path], "d.zarr", top_k=20, keep_values=True, dither=True)
    tokens, values = read(tmp_path / "d.zarr", "a/tokens").astype(int) - 2, read(tmp_path / "d.zarr", "a/values")
    per_count = (10_000 / counts.toarray().sum(1))[cell] / np.load(store / "medians.npy")[tokens]
    off = values / per_count - counts.toarray()[cell, tokens]
    assert np.abs(off).max() < 0.5 + 1e-4
    assert np.abs(off).mean() == pytest.approx(0.25, abs=0.03)
    summaries = {path: StoreSummary.read(path).describe() for path in (store, tmp_path / "d.zarr")}
    for path, count in zip(summaries, ("count", "dithered count"), strict=True):
        assert f"  values       {count} / total * 10,000 / median of each token, float32" in summaries[path]

"""Files in and out: everything of the input, and one vector for each cell, however the data are cut."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr

from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.checkpoint.state import hash_weights
from gm_train.embedding import anndata_copy, token_chunks, translate
from gm_train.embedding.embed import embed
from gm_train.embedding.embed_file import EmbedOptions, embed_file
from gm_train.model.pooling import POOLS
from tests.conftest import Atlas
from tests.support.equal_cells import assert_same_cells

COUNTS = CountOptions(layer="counts")


def quiet(line: str) -> None:
    """Drop a line of the report."""


def write(cells: ad.AnnData, path: Path) -> Path:
    if path.suffix == ".zarr":
        cells.write_zarr(path)
    else:
        cells.write_h5ad(path)
    return path


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut arrays and files so that the cells of a test take several pieces."""
    monkeypatch.setattr(translate, "_ELEMENTS", 64)
    monkeypatch.setattr(translate, "_TEXTS", 16)
    monkeypatch.setattr(anndata_copy, "_BLOCK", 1000)
    monkeypatch.setattr(anndata_copy, "_CHUNK", 1024)


@pytest.mark.parametrize("into", ["h5ad", "zarr", "zarr v3"])
@pytest.mark.parametrize("source", ["h5ad", "zarr", "zarr v3"])
def test_the_output_holds_all_of_the_input_and_the_vectors(
    run_dir: Path, rich: ad.AnnData, tmp_path: Path, source: str, into: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    with ad.settings.override(zarr_write_format=3 if source == "zarr v3" else 2):
        given = write(rich, tmp_path / f"in.{source.split()[0]}")
    before = hash_path(given)
    out = tmp_path / f"out.{into.split()[0]}"
    with ad.settings.override(zarr_write_format=3 if into == "zarr v3" else 2):
        done = embed_file(run_dir, given, out, EmbedOptions(genes=True, counts=COUNTS), quiet)
    assert hash_path(given) == before
    if out.suffix == ".zarr":  # the same format is a copy; a translation is in the format that anndata would write
        expected_format = 3 if (into if given.suffix == ".h5ad" else source) == "zarr v3" else 2
        assert zarr.open_group(out, mode="r").metadata.zarr_format == expected_format
    expected, written = read(given), read(out)
    vectors, genes, record = (
        written.obsm.pop("X_genemamba"), written.varm.pop("X_genemamba_genes"), written.uns.pop("genemamba"),
    )  # fmt: skip
    assert_same_cells(written, expected)

    assert vectors.dtype == np.float32
    assert vectors.shape == (rich.n_obs, 32)
    assert np.flatnonzero(np.isnan(vectors).any(1)).tolist() == [3, 20]
    assert (done.n_cells, done.n_empty, record["dropped"]["cells_without_tokens"]) == (rich.n_obs, 2, 2)
    np.testing.assert_array_equal(vectors, embed(run_dir, rich, options=COUNTS))
    checkpoint = open_checkpoint(run_dir)
    model, tokenizer, _ = load_model(checkpoint)
    weight = model.embedding.weight.detach().numpy()
    for name, row in zip(rich.var_names, genes, strict=True):
        token = tokenizer.vocabulary.token_of.get(name)
        assert np.isnan(row).all() if token is None else (row == weight[token]).all()
    assert record["hashes"] == {
        "weights": hash_weights(model.state_dict()), "vocabulary": tokenizer.vocabulary.hash,
        "medians": tokenizer.medians_hash,
        "tokenizer": tokenizer.hash, "input": before,
    }  # fmt: skip
    assert (record["checkpoint"], record["step"]) == (str(checkpoint.path.resolve()), 4)
    assert record["options"]["layer"] == "counts"
    assert record["genes"]["with_a_token"] + record["dropped"]["genes_without_token"] == rich.n_vars


@pytest.mark.parametrize("pool", POOLS)
def test_vectors_are_the_same_in_any_chunk_order_and_file(
    run_dir: Path, atlas: Atlas, tmp_path: Path, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = ad.read_h5ad(atlas.files[0])
    whole = embed(run_dir, cells, pool=pool)
    assert not np.isnan(whole).any()
    shuffled = np.random.default_rng(0).permutation(cells.n_obs)
    for name, taken, chunk_cells in (
        ("same.h5ad", np.arange(cells.n_obs), 7), ("shuffled.zarr", shuffled, 64), ("few.h5ad", shuffled[:5], 2),
        ("one.h5ad", shuffled[:1], 64),
    ):  # fmt: skip
        monkeypatch.setattr(token_chunks, "CHUNK_CELLS", chunk_cells)
        given, out = write(cells[taken].copy(), tmp_path / f"in-{name}"), tmp_path / name
        embed_file(run_dir, given, out, EmbedOptions(pool), quiet)
        np.testing.assert_allclose(read(out).obsm["X_genemamba"], whole[taken], rtol=0, atol=1e-6)


def test_the_same_file_gives_the_same_bytes(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    for name in ("a.zarr", "b.zarr"):
        embed_file(run_dir, atlas.files[0], tmp_path / name, say=quiet)
    assert hash_path(tmp_path / "a.zarr") == hash_path(tmp_path / "b.zarr")


def test_counts_from_raw_and_from_logs_give_the_vectors_of_the_counts(run_dir: Path, rich: ad.AnnData) -> None:
    expected = embed(run_dir, rich, options=COUNTS)
    np.testing.assert_array_equal(embed(run_dir, rich, options=CountOptions(raw=True)), expected)
    np.testing.assert_array_equal(embed(run_dir, rich, options=CountOptions(layer="by gene")), expected)
    np.testing.assert_array_equal(embed(run_dir, rich, options=CountOptions(layer="dense")), expected)
    np.testing.assert_array_equal(embed(run_dir, rich, options=CountOptions(counts_from="log1p")), expected)


def test_python_takes_paths_views_backed_files_and_loaded_models(run_dir: Path, atlas: Atlas) -> None:
    path = atlas.files[1]
    expected = embed(str(run_dir), str(path))
    loaded = load_model(open_checkpoint(run_dir))
    cells = ad.read_h5ad(path)
    assert expected.shape == (cells.n_obs, 32)
    np.testing.assert_array_equal(embed(loaded, cells), expected)
    np.testing.assert_array_equal(embed(loaded, cells[5:9]), expected[5:9])
    np.testing.assert_array_equal(embed(loaded, ad.read_h5ad(path, backed="r")), expected)
    cells.obs["anything"] = [object() for _ in range(cells.n_obs)]  # cannot be written, and need not be
    np.testing.assert_array_equal(embed(loaded, cells), expected)
    with pytest.raises(DataError, match="must be one of mean, max, rank"):
        embed(loaded, cells, pool="cls")


def test_genes_without_an_id_in_memory_are_those_of_a_file(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    cells = ad.read_h5ad(atlas.files[1])
    cells.var["mine"] = [None if i in (2, 5) else name for i, name in enumerate(cells.var_names)]
    options = CountOptions(gene_column="mine")
    expected = embed(run_dir, write(cells.copy(), tmp_path / "in.h5ad"), options=options)
    np.testing.assert_array_equal(embed(run_dir, cells, options=options), expected)
    assert not np.array_equal(expected, embed(run_dir, cells))


def test_genes_that_the_model_lacks_are_counted(run_dir: Path, atlas: Atlas, tmp_path: Path) -> None:
    cells = ad.read_h5ad(atlas.files[1])
    cells.var_names = [f"other{i}" if i < 20 else name for i, name in enumerate(cells.var_names)]
    given, out = write(cells, tmp_path / "in.h5ad"), tmp_path / "out.h5ad"
    embed_file(run_dir, given, out, EmbedOptions(genes=True), quiet)
    written = ad.read_h5ad(out)
    tokens = load_model(open_checkpoint(run_dir))[1].vocabulary.token_of
    has_token = np.array([name in tokens for name in cells.var_names])
    assert written.uns["genemamba"]["dropped"]["genes_without_token"] == (~has_token).sum() >= 20
    np.testing.assert_array_equal(np.isnan(written.varm["X_genemamba_genes"]).all(1), ~has_token)
    assert max(tokens.values()) == len(tokens) + FIRST_GENE - 1


def test_an_output_can_be_embedded_again_and_its_vectors_are_replaced(
    run_dir: Path, atlas: Atlas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("h5ad", "zarr"):
        first, second = tmp_path / f"1.{folder}", tmp_path / f"2.{folder}"
        embed_file(run_dir, atlas.files[1], first, say=quiet)
        embed_file(run_dir, first, second, EmbedOptions("max"), quiet)
        assert "obsm['X_genemamba'] of the input is replaced in the output" in caplog.text
        np.testing.assert_array_equal(read(second).obsm["X_genemamba"], embed(run_dir, first, pool="max"))
        assert read(second).uns["genemamba"]["options"]["pool"] == "max"
        assert read(first).uns["genemamba"]["options"]["pool"] == "mean"


def test_drift_of_the_medians_is_reported(
    run_dir: Path, tmp_path: Path, atlas: Atlas, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drift(cells: ad.AnnData, name: str) -> dict[str, Any]:
        given, out = write(cells, tmp_path / f"{name}.h5ad"), tmp_path / f"{name}-out.h5ad"
        caplog.clear()
        embed_file(run_dir, given, out, say=quiet)
        return dict(ad.read_h5ad(out).uns["genemamba"]["drift"])

    cells = ad.concat([ad.read_h5ad(atlas.files[0])] * 3, index_unique="-")
    same = drift(cells, "same")
    assert same["genes_compared"] > 0
    assert same["share_of_genes"] == 0
    assert "drift" not in caplog.text
    cells.X[:, ::2] *= 9
    far = drift(cells, "far")
    assert far["share_of_genes"] > 0.2
    assert "far.h5ad: its medians drift from the tokenizer's" in caplog.text
    monkeypatch.setattr(token_chunks, "DRIFT_CELLS", 100)
    assert drift(cells, "sampled")["genes_compared"] < far["genes_compared"]

"""Reading counts: every storage format gives the same chunks, and bad input is refused with one clear message."""

import importlib.util
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from data_shards.counts import annotations, csc_by_cell
from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.read_errors import as_data_errors
from data_shards.errors import DataError
from tests.support.count_files import draw_counts, write_counts


def read_all(path: Path, options: CountOptions | None = None, rows: int = 7) -> np.ndarray:
    """Read all counts in chunks of `rows` cells, and check each chunk: (n_cells, n_genes)."""
    with open_counts(path, options) as counts:
        chunks = list(counts.chunks(rows))
        assert [first for first, _ in chunks] == list(range(0, counts.n_cells, rows))
        for _, chunk in chunks:
            assert chunk.dtype == np.float64
            assert chunk.has_canonical_format
            assert np.all(chunk.data != 0)
        return sp.vstack([chunk for _, chunk in chunks]).toarray()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
def test_every_storage_gives_the_same_counts(
    tmp_path: Path, suffix: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csc_by_cell, "_CELLS", 10)
    monkeypatch.setattr(csc_by_cell, "_ENTRIES", 64)
    expected = draw_counts(53, 20)
    stored = {"csr": expected, "csc": expected.tocsc(), "dense": expected.toarray()}[storage]
    path = write_counts(tmp_path / f"a{suffix}", stored)
    np.testing.assert_array_equal(read_all(path), expected.toarray())


def test_csc_copy_is_shared_with_workers_and_removed(tmp_path: Path) -> None:
    expected = draw_counts(30, 10)
    with open_counts(write_counts(tmp_path / "a.h5ad", expected.tocsc())) as counts:
        source = counts.source
        assert source.by_cell is not None
        with source.open() as again:
            (_, chunk), *_ = again.chunks(30)
            np.testing.assert_array_equal(chunk.toarray(), expected.toarray())
        assert source.by_cell.path.exists()
    assert not source.by_cell.path.exists()


def test_layer_and_raw(tmp_path: Path) -> None:
    counts = draw_counts(12, 9)
    data = ad.AnnData(counts.copy(), var=pd.DataFrame(index=[f"r{i}" for i in range(9)]))
    data.raw = data.copy()
    data = data[:, :5].copy()
    data.layers["spliced"] = data.X * 2
    data.X = data.X.log1p()
    path = tmp_path / "a.h5ad"
    data.write_h5ad(path)
    np.testing.assert_array_equal(read_all(path, CountOptions(raw=True)), counts.toarray())
    np.testing.assert_array_equal(read_all(path, CountOptions(layer="spliced")), counts.toarray()[:, :5] * 2)
    with open_counts(path, CountOptions(raw=True)) as file:
        assert file.gene_names == [f"r{i}" for i in range(9)]
    with pytest.raises(DataError, match=r"no layer 'nope': --layer can be one of: spliced"):
        open_counts(path, CountOptions(layer="nope"))
    with pytest.raises(DataError, match=r"give one of them"):
        CountOptions(layer="spliced", raw=True)


def test_missing_raw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no raw counts"):
        open_counts(write_counts(tmp_path / "a.h5ad", draw_counts(3, 3)), CountOptions(raw=True))


def test_log1p_goes_back_to_counts(tmp_path: Path) -> None:
    counts = draw_counts(40, 30).toarray()
    counts[np.arange(40), np.arange(40) % 30] = 1
    scaled = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(scaled.round(3)))
    np.testing.assert_array_equal(read_all(path, CountOptions(counts_from="log1p")), counts)


def test_log1p_refuses_what_is_far_from_whole(tmp_path: Path) -> None:
    scaled = np.log1p(np.array([[1.0, 2.0, 3.0], [1.0, 2.4, 0.0]]))
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(scaled))
    with pytest.raises(DataError, match=r"a\.h5ad: cell 1, gene g0001: 2\.4 .* more than 0\.25 from a whole count"):
        read_all(path, CountOptions(counts_from="log1p"))


def test_pbmc_of_scanpy_gives_whole_counts() -> None:
    spec = importlib.util.find_spec("scanpy")
    if spec is None or spec.origin is None:
        pytest.skip("scanpy is not installed")
    path = Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    with open_counts(path, CountOptions(raw=True, counts_from="log1p")) as counts:
        assert (counts.n_cells, len(counts.gene_names)) == (700, 765)
        (_, chunk), *_ = counts.chunks(700)
        assert chunk.data.min() == 1
        assert counts.read_obs()["bulk_labels"].nunique() == 10
        assert counts.read_obs().index[0].endswith("-1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"cell 4, gene g0002: nan is not a number"),
        (np.inf, r"cell 4, gene g0002: inf is not a number"),
        (-1.0, r"cell 4, gene g0002: -1 is negative"),
        (1.5, r"cell 4, gene g0002: 1\.5 is not a whole count.*--allow-non-integer"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, value: float, message: str) -> None:
    counts = draw_counts(6, 5).toarray()
    counts[4, 2] = value
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(counts))
    with pytest.raises(DataError, match=message):
        read_all(path, rows=3)


def test_non_integer_counts_can_be_allowed(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(np.array([[0.25, 2.0]])))
    assert read_all(path, CountOptions(allow_non_integer=True)).tolist() == [[0.25, 2.0]]


def test_not_anndata_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.h5ad"
    text.write_text("no counts here")
    with pytest.raises(DataError, match=r"a\.h5ad: not an AnnData file"):
        open_counts(text)
    other = tmp_path / "b.h5ad"
    with h5py.File(other, "w") as file:
        file["matrix"] = np.ones(3)
    with pytest.raises(DataError, match=r"b\.h5ad: not an AnnData file: it has no obs and var"):
        open_counts(other)
    with pytest.raises(DataError, match=r"c\.h5ad: no such file"):
        open_counts(tmp_path / "c.h5ad")
    folder = tmp_path / "d.zarr"
    folder.mkdir()
    with pytest.raises(DataError, match=r"d\.zarr: is an empty folder, but not an AnnData-Zarr: give .h5ad files"):
        open_counts(folder)
    (folder / "zarr.json").write_text('{"zarr_form')
    with pytest.raises(DataError, match=r"d\.zarr: not an AnnData file, or a truncated one \(.+\): fetch"):
        open_counts(folder)


def test_truncated_h5ad_is_refused(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(50, 40))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.h5ad: .*truncated"):
        open_counts(path)


def test_wrong_column_index_is_refused(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(5, 4))
    with h5py.File(path, "r+") as file:
        file["X/indices"][1] = 99
    with pytest.raises(DataError, match=r"a column index of cells 0 to 5 is outside"):
        read_all(path)


def test_repeated_column_index_is_summed(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(np.array([[1.0, 2.0, 0.0]])))
    with h5py.File(path, "r+") as file:
        file["X/indices"][1] = 0
    assert read_all(path).tolist() == [[3.0, 0.0, 0.0]]


def test_cells_without_a_count_and_with_one_gene_are_read(tmp_path: Path) -> None:
    counts = sp.csr_matrix(np.array([[0.0, 0.0], [0.0, 3.0]]))
    assert read_all(write_counts(tmp_path / "a.h5ad", counts)).tolist() == [[0, 0], [0, 3]]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_obs_is_read_by_rows(tmp_path: Path, suffix: str) -> None:
    obs = {
        "cell_type": pd.Categorical(["b", None, "a", "b"]),
        "n": [1, 2, 3, 4],
        "text": ["w", "x", "y", "z"],
        "flag": [True, False, True, False],
        "maybe": pd.array([1, None, 3, 4], dtype="Int64"),
    }
    path = write_counts(tmp_path / f"a{suffix}", draw_counts(4, 3), obs=obs)
    with open_counts(path) as counts:
        part = counts.read_obs(1, 3)
        whole = counts.read_obs()
    assert part.index.tolist() == ["c1", "c2"]
    assert part["text"].tolist() == ["x", "y"]
    assert part["n"].tolist() == [2, 3]
    assert part["flag"].tolist() == [False, True]
    assert part["cell_type"].isna().tolist() == [True, False]
    assert part["maybe"].isna().tolist() == [True, False]
    assert whole["cell_type"].tolist()[2:] == ["a", "b"]


def rechunk(path: Path, name: str, values: np.ndarray, chunks: tuple[int, ...]) -> None:
    """Write an array of an AnnData-Zarr again, with other chunks."""
    zarr.open_group(path, mode="r+").create_array(name, data=values, chunks=chunks, overwrite=True)
    zarr.consolidate_metadata(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("storage", ["csr", "csc"])
@pytest.mark.parametrize("array", ["data", "indices", "indptr"])
def test_a_missing_chunk_of_a_sparse_zarr_is_refused(
    tmp_path: Path, zarr_format: int, storage: str, array: str
) -> None:
    expected = draw_counts(40, 30)
    with ad.settings.override(zarr_write_format=zarr_format):
        path = write_counts(tmp_path / "a.zarr", expected if storage == "csr" else expected.tocsc())
    values = np.asarray(zarr.open_array(path, path=f"X/{array}", mode="r")[:])
    rechunk(path, f"X/{array}", values, (8,))
    np.testing.assert_array_equal(read_all(path), expected.toarray())
    chunks = path / "X" / array / ("c" if zarr_format == 3 else "")
    for number, message in ((1, f"1 of the .* chunks of X/{array} are missing"), (-(-len(values) // 8) - 1, "missing")):
        content = (chunks / str(number)).read_bytes()
        (chunks / str(number)).unlink()
        with pytest.raises(DataError, match=message):
            open_counts(path)
        (chunks / str(number)).write_bytes(content)
    open_counts(path).close()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_without_a_count_may_be_absent(tmp_path: Path, zarr_format: int) -> None:
    dense = draw_counts(12, 9).toarray()
    dense[4:8] = 0
    with ad.settings.override(zarr_write_format=zarr_format):
        path = write_counts(tmp_path / "a.zarr", dense)
    rechunk(path, "X", dense, (4, 9))
    assert not (path / "X" / ("c/1/0" if zarr_format == 3 else "1.0")).exists()
    np.testing.assert_array_equal(read_all(path), dense)
    for number, counts in enumerate((sp.csr_matrix((3, 4), dtype=np.float32), sp.csr_matrix(np.ones((3, 1))))):
        np.testing.assert_array_equal(read_all(write_counts(tmp_path / f"{number}.zarr", counts)), counts.toarray())


def test_a_reader_may_stop_early_and_begin_again(tmp_path: Path) -> None:
    expected = draw_counts(40, 30).toarray()
    with open_counts(write_counts(tmp_path / "a.h5ad", sp.csr_matrix(expected))) as counts:
        for _ in range(3):
            chunks = counts.chunks(8, start=5)
            first, chunk = next(chunks)
            chunks.close()
            assert first == 5
            np.testing.assert_array_equal(chunk.toarray(), expected[5:13])
        abandoned = counts.chunks(8)
        next(abandoned)
        rest = [chunk.toarray() for _, chunk in counts.chunks(8)]
    np.testing.assert_array_equal(np.concatenate(rest), expected)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_files_without_cells_or_genes_are_refused(tmp_path: Path, shape: tuple[int, int], suffix: str) -> None:
    path = write_counts(tmp_path / f"a{suffix}", sp.csr_matrix(shape, dtype=np.float32))
    with pytest.raises(DataError, match=rf"X has {shape[0]} cells and {shape[1]} genes: there is nothing to read"):
        open_counts(path)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_nullable_index_and_columns_are_read_by_rows(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    obs = pd.DataFrame(
        {
            "whole": pd.array([1, None, 3, 4], dtype="Int64"),
            "flag": pd.array([True, None, False, True], dtype="boolean"),
            "text": pd.array(["a", None, "b", "c"], dtype="string"),
        },
        index=pd.Index(pd.array(["w", "x", "y", "z"], dtype="string")),
    )
    data = ad.AnnData(draw_counts(4, 3), obs=obs)
    data.strings_to_categoricals = lambda *_: None  # type: ignore[method-assign]  # keep strings
    path = tmp_path / f"a{suffix}"
    with ad.settings.override(allow_write_nullable_strings=True):
        data.write_h5ad(path) if suffix == ".h5ad" else data.write_zarr(path)
    whole_columns: list[str] = []
    with open_counts(path) as counts:
        monkeypatch.setattr(annotations, "read_elem", lambda element: whole_columns.append(element.name))
        part = counts.annotations.read(1, 3)
    assert not whole_columns
    pd.testing.assert_frame_equal(part, obs.iloc[1:3], check_index_type=False)


def test_compound_tables_of_old_files_are_decoded(tmp_path: Path) -> None:
    """Before anndata 0.7 annotations are compound arrays, here with strings of variable length."""
    path = tmp_path / "a.h5ad"
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file["X"] = draw_counts(3, 2).toarray()
        file["var"] = np.array([("g0", "é"), ("g1", "b")], dtype=[("index", text), ("symbol", text)])
        file["obs"] = np.array(
            [(f"c{i}", f"d{i}".encode(), i % 2) for i in range(3)],
            dtype=[("index", text), ("donor", "S4"), ("cell_type", "i1")],
        )
        file.create_dataset("uns/cell_type_categories", data=["A", "B"], dtype=text)
    with open_counts(path) as counts:
        assert counts.gene_names == ["g0", "g1"]
        assert counts.var["symbol"].tolist() == ["é", "b"]
        obs = counts.read_obs(1, 3)
    assert obs.index.tolist() == ["c1", "c2"]
    assert obs["donor"].tolist() == ["d1", "d2"]
    assert obs["cell_type"].tolist() == ["B", "A"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("required filter 'blosc' is not registered"), r"a\.h5ad: .*pip install hdf5plugin"),
        (OSError("filter returned failure during read"), r"a\.h5ad: cannot be read .*fetch it again"),
        (OSError("truncated file"), r"a\.h5ad: cannot be read \(truncated file\).*fetch it again"),
        (KeyError("indptr"), r"a\.h5ad: not as anndata writes it, or damaged \('indptr'\)"),
    ],
)
def test_what_cannot_be_read_is_told_apart(error: Exception, message: str) -> None:
    with pytest.raises(DataError, match=message), as_data_errors(Path("a.h5ad")):
        raise error
    with pytest.raises(TypeError), as_data_errors(Path("a.h5ad")):
        raise TypeError("a bug of this program")


def test_a_filter_that_is_not_installed_is_named(tmp_path: Path) -> None:
    counts = draw_counts(4, 3)
    path = write_counts(tmp_path / "filtered_plugin.h5ad", counts)
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((counts.nnz,))
        properties.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL)  # no filter has this number
        space = h5py.h5s.create_simple((counts.nnz,))
        data = h5py.h5d.create(file["X"].id, b"data", h5py.h5t.IEEE_F32LE, space, properties)
        data.write_direct_chunk((0,), counts.data.tobytes())
    with pytest.raises(DataError, match=r"compressed with a filter that is not installed .*pip install hdf5plugin"):
        read_all(path)


def test_ways_of_reading_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(DataError, match=r"leave out --allow-non-integer"):
        CountOptions(counts_from="log1p", allow_non_integer=True)

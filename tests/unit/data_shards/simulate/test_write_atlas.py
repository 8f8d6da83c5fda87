"""The simulated atlas has the structure that its options ask for, and is the same for the same seed."""

import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.counts.count_file import open_counts
from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.simulate import write_atlas as write_atlas_module
from data_shards.simulate.atlas import draw_atlas, draw_cells
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.draws import draw_genes, guide
from data_shards.simulate.write_atlas import write_atlas
from tests.support.disks import resize, small_disk

OPTIONS = AtlasOptions(cells=300, genes=200, cell_types=3, programmes=6, donors=4, batches=2, genes_per_programme=10)


def test_file_is_anndata_with_counts_and_annotations(tmp_path: Path) -> None:
    gmt = write_atlas(tmp_path / "a.h5ad", OPTIONS)
    data = ad.read_h5ad(tmp_path / "a.h5ad")
    assert data.shape == (300, 200)
    assert data.obs["cell_type"].nunique() == 3
    assert data.obs["donor_id"].nunique() == 4
    assert data.obs.groupby("donor_id", observed=True)["batch"].nunique().max() == 1
    with open_counts(tmp_path / "a.h5ad") as counts:
        chunks = list(counts.chunks())  # checked as counts
        assert counts.read_obs().index[299] == "cell00000299"
    assert chunks[0][1].nnz > 0
    totals = np.asarray(data.X.sum(axis=1)).ravel()
    assert totals.max() / totals.min() > 2
    sets = [line.split("\t") for line in gmt.read_text().splitlines()]
    assert [len(genes) for _, _, *genes in sets] == [10] * 6
    assert set(sets[0][2:]) <= set(data.var_names)


def test_programmes_are_active_in_the_types_that_use_them(tmp_path: Path) -> None:
    gmt = write_atlas(tmp_path / "a.h5ad", OPTIONS)
    data = ad.read_h5ad(tmp_path / "a.h5ad")
    shares = data.X.toarray() / data.X.sum(axis=1)
    used = draw_atlas(OPTIONS).of_type
    compared = 0
    for number, line in enumerate(gmt.read_text().splitlines()):
        share = shares[:, data.var_names.get_indexer(line.split("\t")[2:])].sum(axis=1)
        of_type = [float(np.mean(share[data.obs["cell_type"] == f"type{i:03d}"])) for i in range(3)]
        users = [i for i in range(3) if number in used[i]]
        others = [i for i in range(3) if i not in users]
        if users and others:
            assert min(of_type[i] for i in users) > max(of_type[i] for i in others)
            compared += 1
    assert compared > 0


def test_the_same_seed_gives_the_same_file_and_another_seed_does_not(tmp_path: Path) -> None:
    def content(name: str, options: AtlasOptions) -> np.ndarray:
        write_atlas(tmp_path / name, options)
        return ad.read_h5ad(tmp_path / name).X.toarray()

    first = content("a.h5ad", OPTIONS)
    np.testing.assert_array_equal(first, content("b.h5ad", OPTIONS))
    assert hash_path(tmp_path / "a.gmt") == hash_path(tmp_path / "b.gmt")
    assert np.any(first != content("c.h5ad", AtlasOptions(**{**OPTIONS.__dict__, "seed": 1})))


def test_dropout_removes_low_counts(tmp_path: Path) -> None:
    write_atlas(tmp_path / "a.h5ad", AtlasOptions(**{**OPTIONS.__dict__, "dropout": 0.0}))
    write_atlas(tmp_path / "b.h5ad", AtlasOptions(**{**OPTIONS.__dict__, "dropout": 0.8}))
    whole, thinned = (ad.read_h5ad(tmp_path / name).X.toarray() for name in ("a.h5ad", "b.h5ad"))
    kept = thinned > 0
    np.testing.assert_array_equal(thinned[kept], whole[kept])
    assert kept[whole == 1].mean() < 0.4
    assert kept[whole > 5].mean() > 0.95


def test_bad_options_and_existing_output_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"cells": 0}, "--cells 0"),
        ({"genes": 5}, "--genes-per-programme 30 exceeds --genes 5"),
        ({"programmes_per_type": 99}, "--programmes-per-type 99"),
        ({"dropout": 1.0}, "--dropout 1"),
        ({"counts_per_cell": 0.0}, "--counts-per-cell 0"),
    ):
        with pytest.raises(DataError, match=message):
            AtlasOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="--compression 'zip': must be one of lzf, gzip, none"):
        write_atlas(tmp_path / "a.h5ad", OPTIONS, "zip")
    with pytest.raises(DataError, match=r"a\.h5: an atlas is an AnnData file: name it a\.h5ad"):
        write_atlas(tmp_path / "a.h5", OPTIONS)
    (tmp_path / "a.gmt").write_text("mine")
    with pytest.raises(DataError, match=r"a\.gmt: exists already"):
        write_atlas(tmp_path / "a.h5ad", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gmt"]

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_atlas_module, "_extend", full)
    with pytest.raises(DataError, match=r"b\.\w+: cannot be written .*No space left"):
        write_atlas(tmp_path / "b.h5ad", OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gmt"]


def test_a_disk_that_fills_up_is_reported(tmp_path: Path) -> None:
    """Whenever it fills up, even when HDF5 closes the file; and HDF5 does not crash when the program ends."""
    write_atlas(tmp_path / "a.h5ad", OPTIONS)
    size_kb = (tmp_path / "a.h5ad").stat().st_size >> 10
    was_open = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET)
    with small_disk(tmp_path / "disk", size_kb) as disk:
        for less in range(8, size_kb, size_kb // 40):
            resize(disk, size_kb - less)
            with pytest.raises(DataError, match=r"b\.\w+: cannot be written .*No space left on device"):
                write_atlas(disk / "b.h5ad", OPTIONS)
            assert list(disk.iterdir()) == []
            assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET) == was_open


def test_a_read_only_folder_is_reported(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 80) as disk:
        resize(disk, 0)
        with pytest.raises(DataError, match=r"b\.\w+: cannot be written .*Read-only file system"):
            write_atlas(disk / "b.h5ad", OPTIONS)


@pytest.mark.parametrize(
    ("options", "chunk", "expected"),
    [
        (AtlasOptions(), 1, "ba8af974992bb3c013ab1309"),
        (AtlasOptions(cells=300, genes=20_000, counts_per_cell=20_000.0, dropout=0.0), 0, "23bb32d8c77cfc699831b506"),
    ],
)
def test_the_cells_of_a_seed_never_change(options: AtlasOptions, chunk: int, expected: str) -> None:
    """Pinned, because figures of earlier runs were made with these cells."""
    types, donors, counts = draw_cells(draw_atlas(options), options, chunk, min(options.cells, 2000))
    digest = sha256()
    arrays = (types, donors, counts.data, counts.indices, counts.indptr)
    for array, dtype in zip(arrays, ("<i8", "<i8", "<f8", "<i8", "<i8"), strict=True):
        digest.update(array.astype(dtype).tobytes())
    assert digest.hexdigest()[:24] == expected


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=50), st.integers(0, 2**32))
def test_a_gene_is_the_one_that_a_binary_search_finds(weights: list[float], seed: int) -> None:
    cumulative = np.cumsum(np.array(weights) + (max(weights) == 0))
    cumulative /= cumulative[-1]
    uniform = np.concatenate([np.random.default_rng(seed).random(100), cumulative[cumulative < 1], [0.0]])
    expected = np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(weights) - 1)
    np.testing.assert_array_equal(draw_genes(uniform, cumulative, guide(cumulative)), expected)


def test_workers_and_compression_do_not_change_the_cells(tmp_path: Path) -> None:
    options = replace(OPTIONS, cells=9000, counts_per_cell=100.0)
    write_atlas(tmp_path / "one.h5ad", options)
    write_atlas(tmp_path / "two.h5ad", options, workers=2)
    assert hash_path(tmp_path / "one.h5ad") == hash_path(tmp_path / "two.h5ad")
    sizes, contents = [], []
    for compression in ("none", "lzf", "gzip"):
        path = tmp_path / f"{compression}.h5ad"
        write_atlas(path, options, compression)
        with h5py.File(path) as file:
            assert file["X/data"].compression == (None if compression == "none" else compression)
            contents.append([file[f"X/{name}"][:] for name in ("data", "indices", "indptr")])
        sizes.append(path.stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    for other in contents[1:]:
        for first, second in zip(contents[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_sorted_cells_of_a_type_stand_together(tmp_path: Path) -> None:
    write_atlas(tmp_path / "a.h5ad", replace(OPTIONS, cells=5000, counts_per_cell=50.0, sorted=True))
    data = ad.read_h5ad(tmp_path / "a.h5ad")
    codes = data.obs["cell_type"].cat.codes.to_numpy()
    assert np.all(np.diff(codes) >= 0)
    assert np.bincount(codes).tolist() == [1667, 1667, 1666]
    assert np.unique(data.obs["donor_id"].cat.codes[:100]).tolist() == [0, 1, 2, 3]


_PEAK = """
import sys
from pathlib import Path
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.write_atlas import write_atlas
from gm_train.bench.measure.footprint import Footprint
write_atlas(Path(sys.argv[1]), AtlasOptions(cells=int(sys.argv[2]), genes=200, counts_per_cell=300.0))
print(Footprint.own())
"""


def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    """A list of the chunks of 240,000 cells would add at least 180 MB; memory that the allocator keeps adds tens."""
    peaks = []
    for cells in (20_000, 240_000):
        command = [sys.executable, "-c", _PEAK, str(tmp_path / f"{cells}.h5ad"), str(cells)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 80 << 20

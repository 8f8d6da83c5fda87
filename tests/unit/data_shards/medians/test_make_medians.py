"""Medians: correct, independent of workers, order and chunks, and never half-written."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st

from data_shards.counts.gene_ids import GeneTable
from data_shards.errors import DataError
from data_shards.medians import (
    exact_medians,
    medians_file,
    medians_source,
    tdigest_parts,
    tdigest_tree,
)
from data_shards.medians import (
    make_medians as make_medians_module,
)
from data_shards.medians.make_medians import make_medians
from data_shards.medians.medians_file import Medians
from data_shards.medians.tdigest import MAX_CENTROIDS, Digests, Partition
from data_shards.medians.tdigest_parts import DigestPart
from data_shards.workers.workers import Workers
from tests.support.count_files import draw_counts, write_counts
from tests.support.data_runs import content


def quiet(line: str) -> None:
    pass


def slow_medians(counts: np.ndarray) -> np.ndarray:
    """Medians by their definition: of the non-zero values of count / total * 10,000; NaN without such a value."""
    normalised = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 10_000
    return np.array([np.median(gene[gene > 0]) if np.any(gene > 0) else np.nan for gene in normalised.T])


@pytest.fixture
def small_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small files take several levels of merging, with several pieces per part."""
    monkeypatch.setattr(medians_source, "PARTITION_CELLS", 16)
    monkeypatch.setattr(tdigest_tree, "FAN_IN", 2)
    monkeypatch.setattr(tdigest_parts, "_CENTROIDS", 64)
    monkeypatch.setattr(medians_file, "_CENTROIDS", 64)


@pytest.mark.parametrize("exactly", [False, True])
def test_medians_follow_the_definition(tmp_path: Path, small_partitions: None, exactly: bool) -> None:
    counts = draw_counts(150, 25).toarray()
    counts[:, 3] = 0
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(counts))
    found = make_medians([path], tmp_path / "m.zarr", exact=exactly, say=quiet)
    np.testing.assert_allclose(found.medians, slow_medians(counts), rtol=1e-6)
    np.testing.assert_array_equal(found.counts, (counts > 0).sum(axis=0))
    again = Medians.load(tmp_path / "m.zarr")
    assert again.hash == found.hash
    np.testing.assert_array_equal(again.medians, found.medians)
    assert again.method == ("exact" if exactly else "t-digest")


def test_total_is_over_all_genes_as_delivered(tmp_path: Path) -> None:
    """Genes that the mapping drops still count towards the total of a cell."""
    table = GeneTable(("ENSG00000000001", "ENSG00000000002"), ("A", "B"))
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(np.array([[1.0, 2.0, 7.0]])), ["A", "B", "other"])
    found = make_medians([path], tmp_path / "m.zarr", gene_table=table, say=quiet)
    assert found.genes == table.ids
    np.testing.assert_allclose(found.medians, [1_000, 2_000])


def test_duplicate_ids_are_summed_and_reported(tmp_path: Path) -> None:
    table = GeneTable(("ENSG00000000001", "ENSG00000000002"), ("A", "B"))
    names = ["A", "ENSG00000000001.4", "B"]
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(np.array([[1.0, 2.0, 2.0]])), names)
    lines: list[str] = []
    found = make_medians([path], tmp_path / "m.zarr", gene_table=table, say=lines.append)
    np.testing.assert_allclose(found.medians, [6_000, 4_000])
    np.testing.assert_array_equal(found.counts, [1, 1])
    assert "1 duplicate ids summed" in lines[0]


@pytest.mark.parametrize("exactly", [False, True])
def test_workers_order_and_storage_change_no_bit(tmp_path: Path, small_partitions: None, exactly: bool) -> None:
    one, two = draw_counts(70, 12, seed=1), draw_counts(33, 12, seed=2)
    a = write_counts(tmp_path / "a.h5ad", one)
    b = write_counts(tmp_path / "b.h5ad", two.tocsc())
    (tmp_path / "c").mkdir()
    c = write_counts(tmp_path / "c" / "b.h5ad", two)
    alone = make_medians([a, b], tmp_path / "1.zarr", exact=exactly, say=quiet)
    parallel = make_medians([c, a], tmp_path / "2.zarr", exact=exactly, workers=2, say=quiet)
    assert alone.hash == parallel.hash


def test_the_same_bytes_for_any_workers_order_and_way_of_adding(tmp_path: Path, small_partitions: None) -> None:
    """Compare all files of the folder: for 1 and 5 workers, and for data sets added one by one in two orders."""
    table = GeneTable(("ENSG00000000001", "ENSG00000000002"), ("g0000", "g0001"))
    genes = [f"ENSG{i:011d}" for i in range(3, 23)]
    sizes = {"b": 130, "a": 31, "c": 16}
    files = {
        name: write_counts(tmp_path / f"{name}.h5ad", draw_counts(n, 22, seed=n), ["g0000", "g0001", *genes])
        for name, n in sizes.items()
    }
    make_medians([*files.values()], tmp_path / "1.zarr", gene_table=table, say=quiet)
    expected = content(tmp_path / "1.zarr")
    make_medians([files["c"], files["a"], files["b"]], tmp_path / "5.zarr", gene_table=table, workers=5, say=quiet)
    assert content(tmp_path / "5.zarr") == expected
    for number, order in enumerate(("bca", "acb")):
        out = tmp_path / f"added{number}.zarr"
        make_medians([files[order[0]]], out, gene_table=table, say=quiet)
        for name in order[1:]:
            make_medians([files[name]], out, add=True, say=quiet)
        assert content(out) == expected
    attrs: Any = zarr.open_group(tmp_path / "1.zarr", mode="r").attrs["datasets"]
    assert [entry["name"] for entry in attrs] == ["a", "b", "c"]
    assert {entry["name"]: entry["source_hash"] for entry in attrs} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }


def test_digests_of_many_levels_against_exact_medians(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the error of digests: 48 partitions, 1,200 to 98,000 values per gene, five levels of merging."""
    monkeypatch.setattr(medians_source, "PARTITION_CELLS", 2048)
    monkeypatch.setattr(tdigest_tree, "FAN_IN", 3)
    rng = np.random.default_rng(5)
    n_cells, n_genes = 48 * 2048, 60
    rates = np.geomspace(0.012, 20, n_genes)
    rates[-1] = 4_000  # stands for all other genes: realistic totals, and few equal values
    rates = rates * rng.gamma(2, 0.5, (n_cells, 1))
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(rng.poisson(rates).astype(np.float32)))
    digest = make_medians([path], tmp_path / "d.zarr", say=quiet)
    exactly = make_medians([path], tmp_path / "e.zarr", exact=True, say=quiet)
    assert digest.counts.min() > MAX_CENTROIDS
    np.testing.assert_array_equal(digest.counts, exactly.counts)
    error = np.abs(digest.medians / exactly.medians - 1)
    assert error.max() < 5e-3
    assert np.median(error) < 2e-4


def test_species_are_not_mixed(tmp_path: Path) -> None:
    def write(name: str, prefix: str, extra: str = "ENSSASG00005000004") -> Path:
        genes = [*(f"{prefix}{i:011d}" for i in range(9)), extra]  # a virus gene: it must not count as a species
        return write_counts(tmp_path / f"{name}.h5ad", draw_counts(12, 10), genes)

    human, mouse, more = write("man", "ENSG"), write("mouse", "ENSMUSG"), write("woman", "ENSG")
    refused = r"different species .*man: human \(ENSG…\), mouse: mouse \(ENSMUSG…\)"
    with pytest.raises(DataError, match=refused):
        make_medians([mouse, human], tmp_path / "m.zarr", say=quiet)
    make_medians([human], tmp_path / "m.zarr", say=quiet)
    with pytest.raises(DataError, match=refused):
        make_medians([mouse], tmp_path / "m.zarr", add=True, say=quiet)
    assert make_medians([more], tmp_path / "m.zarr", add=True, say=quiet).datasets == ("man", "woman")


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("storage", ["csr", "csc"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, storage: str, small_partitions: None
) -> None:
    """Nothing read from it is used, not even after its old content is restored."""
    counts = draw_counts(50, 10)
    path = write_counts(tmp_path / f"a{suffix}", counts.tocsc() if storage == "csc" else counts)
    whole = make_medians([path], tmp_path / "whole.zarr", say=quiet)
    digest, starts = tdigest_parts.digest_partition, []

    def change(partition: Partition) -> Digests:
        starts.append(partition.start)
        if len(starts) == 3:
            os.utime(path if path.is_file() else next(path.rglob(".zarray")), ns=(0, 0))
        return digest(partition)

    monkeypatch.setattr(tdigest_parts, "digest_partition", change)
    with pytest.raises(DataError, match=rf"a{suffix}: changed while it was read: wait until it is complete"):
        make_medians([path], tmp_path / "m.zarr", say=quiet)
    assert not (tmp_path / "m.zarr").exists()
    assert make_medians([path], tmp_path / "m.zarr", say=quiet).hash == whole.hash
    assert starts == [0, 16, 32, 32, 48]


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """Cut off at its end, which HDF5 notices when it opens the file, or in the counts of a chunked file."""
    path = tmp_path / "a.h5ad"
    ad.AnnData(draw_counts(3_000, 40)).write_h5ad(path, compression="gzip")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20_000])
    with pytest.raises(DataError, match=r"a\.h5ad: .*truncated"):
        make_medians([path], tmp_path / "m.zarr", say=quiet)
    with h5py.File(write_counts(tmp_path / "b.h5ad", draw_counts(9, 4)), "r+") as file:
        values = file["X/data"][:-5]
        del file["X/data"]
        file["X/data"] = values
    with pytest.raises(DataError, match=r"b\.h5ad: the counts of cells 0 to 9 are cut short"):
        make_medians([tmp_path / "b.h5ad"], tmp_path / "m.zarr", say=quiet)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.h5ad", "b.h5ad"]


def test_adding_equals_making_at_once(tmp_path: Path, small_partitions: None) -> None:
    a = write_counts(tmp_path / "a.h5ad", draw_counts(40, 10, seed=1), [f"g{i}" for i in range(10)])
    b = write_counts(tmp_path / "b.h5ad", draw_counts(20, 10, seed=2), [f"g{i}" for i in range(5, 15)])
    at_once = make_medians([a, b], tmp_path / "1.zarr", say=quiet)
    make_medians([b], tmp_path / "2.zarr", say=quiet)
    added = make_medians([a], tmp_path / "2.zarr", add=True, say=quiet)
    assert len(added.genes) == 15
    assert added.hash == at_once.hash == Medians.load(tmp_path / "2.zarr").hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.zarr", "2.zarr", "a.h5ad", "b.h5ad"]
    with pytest.raises(DataError, match=r"2\.zarr: has a data set 'a' already: leave it out, or rename the file$"):
        make_medians([a], tmp_path / "2.zarr", add=True, say=quiet)
    with pytest.raises(DataError, match=r"two data sets are named 'a'"):
        make_medians([a, a], tmp_path / "3.zarr", say=quiet)


def test_adding_is_refused_where_it_cannot_be_right(tmp_path: Path) -> None:
    a = write_counts(tmp_path / "a.h5ad", draw_counts(10, 5))
    b = write_counts(tmp_path / "b.h5ad", draw_counts(10, 5))
    with pytest.raises(DataError, match=r"no such medians file"):
        make_medians([a], tmp_path / "none.zarr", add=True, say=quiet)
    make_medians([a], tmp_path / "exact.zarr", exact=True, say=quiet)
    with pytest.raises(DataError, match=r"exact medians cannot be added to"):
        make_medians([b], tmp_path / "exact.zarr", add=True, say=quiet)
    make_medians([a], tmp_path / "m.zarr", say=quiet)
    with pytest.raises(DataError, match=r"made with another gene table"):
        make_medians([b], tmp_path / "m.zarr", gene_table=GeneTable(("ENSG00000000001",), ("A",)), add=True, say=quiet)


@pytest.mark.parametrize("exactly", [False, True])
def test_files_may_be_named_as_arrays_are(tmp_path: Path, exactly: bool) -> None:
    counts = [draw_counts(20, 5, seed=seed) for seed in (1, 2, 3)]
    names = ("counts", "medians", "datasets"), ("x", "z", "y")
    made = []
    for number, stems in enumerate(names):
        files = [write_counts(tmp_path / f"{name}.h5ad", part) for name, part in zip(stems, counts, strict=True)]
        out = tmp_path / f"m{number}.zarr"
        if exactly:
            make_medians(files, out, exact=True, say=quiet)
        else:
            make_medians(files[:2], out, say=quiet)
            make_medians(files[2:], out, add=True, say=quiet)
        made.append(Medians.load(out))
    assert made[0].datasets == tuple(sorted(names[0]))
    assert made[0].hash == made[1].hash
    np.testing.assert_allclose(made[0].medians, slow_medians(sp.vstack(counts).toarray()), rtol=1e-6)


def test_what_is_added_meanwhile_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (write_counts(tmp_path / f"{name}.h5ad", draw_counts(10, 5)) for name in "abc")
    out = tmp_path / "m.zarr"
    make_medians([a], out, say=quiet)
    real = make_medians_module.work_folder

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(make_medians_module, "work_folder", real)
        make_medians([c], out, add=True, say=quiet)
        return real(*arguments)

    monkeypatch.setattr(make_medians_module, "work_folder", late)
    with pytest.raises(DataError, match=r"m\.zarr: another --add has changed it meanwhile: start again"):
        make_medians([b], out, add=True, say=quiet)
    assert Medians.load(out).datasets == ("a", "c")
    assert make_medians([b], out, add=True, say=quiet).datasets == ("a", "b", "c")


def test_adding_finds_the_kind_of_the_file_itself(tmp_path: Path) -> None:
    ids = [f"ENSG{i:011d}" for i in range(4)]
    names = [f"g{i}" for i in range(4)]
    plain = write_counts(tmp_path / "plain.h5ad", draw_counts(10, 4), names)
    with_ids = write_counts(tmp_path / "ids.h5ad", draw_counts(10, 4), names, var={"gene_ids": ids})
    make_medians([plain], tmp_path / "m.zarr", say=quiet)
    with pytest.raises(DataError, match=r"different kinds .*ids: ensembl, the medians so far: as-is"):
        make_medians([with_ids], tmp_path / "m.zarr", add=True, say=quiet)
    make_medians([with_ids], tmp_path / "n.zarr", say=quiet)
    with pytest.raises(DataError, match=r"plain: as-is, the medians so far: ensembl"):
        make_medians([plain], tmp_path / "n.zarr", add=True, say=quiet)


def test_one_copy_by_cell_lies_in_the_work_folder_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work folder is visible to workers on other nodes; a temporary folder is not."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    digest, copies = make_medians_module.digest_dataset, []

    def watched(*arguments: Any) -> DigestPart:
        found = digest(*arguments)
        copies.append([copy.parent.name for copy in tmp_path.glob(".m.zarr.work/*/*/by-cell")])
        return found

    monkeypatch.setattr(make_medians_module, "digest_dataset", watched)
    files = [write_counts(tmp_path / f"{name}.h5ad", draw_counts(9, 4).tocsc()) for name in "abc"]
    make_medians(files, tmp_path / "m.zarr", say=quiet)
    assert copies == [["a"], ["b"], ["c"]]


def test_an_interrupted_add_is_named(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(10, 5))
    out = tmp_path / "m.zarr"
    made = make_medians([path], out, say=quiet)
    out.rename(tmp_path / ".m.zarr.old-host-1")  # state after kill -9 between the two renames of --add
    with pytest.raises(DataError, match=r"an `--add` was killed .*\.m\.zarr\.old-host-1: rename it to m\.zarr"):
        Medians.load(out)
    (tmp_path / ".m.zarr.old-host-1").rename(out)
    assert Medians.load(out).hash == made.hash


def test_mixed_kinds_are_refused(tmp_path: Path) -> None:
    a = write_counts(tmp_path / "a.h5ad", draw_counts(4, 3), [f"ENSG0000000000{i}" for i in range(3)])
    b = write_counts(tmp_path / "b.h5ad", draw_counts(4, 3))
    with pytest.raises(DataError, match=r"different kinds .*a: ensembl, b: as-is.*--gene-table"):
        make_medians([a, b], tmp_path / "m.zarr", say=quiet)


def test_nothing_is_left_behind_or_overwritten(tmp_path: Path) -> None:
    bad = draw_counts(30, 5).toarray()
    bad[29, 4] = -1
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(bad))
    with pytest.raises(DataError, match=r"is negative"):
        make_medians([path], tmp_path / "m.zarr", say=quiet)
    assert [found.name for found in tmp_path.iterdir()] == ["a.h5ad"]
    (tmp_path / "m.zarr").mkdir()
    with pytest.raises(DataError, match=r"m\.zarr: exists already"):
        make_medians([path], tmp_path / "m.zarr", say=quiet)
    assert list((tmp_path / "m.zarr").iterdir()) == []


def test_damaged_medians_are_refused(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", draw_counts(10, 5))
    out = tmp_path / "m.zarr"
    make_medians([path], out, say=quiet)
    names = json.loads((out / "genes.json").read_text())
    (out / "genes.json").write_text(json.dumps({**names, "genes": names["genes"][::-1]}))
    with pytest.raises(DataError, match=r"m\.zarr: damaged: make it again"):
        Medians.load(out)
    (out / "genes.json").write_text(json.dumps(names))
    Medians.load(out)
    (out / "counts" / "c" / "0").unlink()
    with pytest.raises(DataError, match=r"m\.zarr: damaged: make it again"):
        Medians.load(out)
    with pytest.raises(DataError, match=r"not a medians file"):
        Medians.load(tmp_path)


@pytest.mark.parametrize(("change", "fix"), [(1, "update gm-train"), (-1, "make it again")])
def test_medians_of_another_version_are_named(tmp_path: Path, change: int, fix: str) -> None:
    out = tmp_path / "m.zarr"
    make_medians([write_counts(tmp_path / "a.h5ad", draw_counts(10, 5))], out, say=quiet)
    zarr.open_group(out, mode="a").attrs["schema"] = medians_file.SCHEMA + change
    with pytest.raises(
        DataError, match=rf"layout version {medians_file.SCHEMA + change}, this program reads .*: {fix}"
    ):
        Medians.load(out)


@pytest.mark.parametrize("array", ["means", "weights", "indptr", "counts"])
def test_missing_digests_are_noticed_when_adding(tmp_path: Path, array: str) -> None:
    a = write_counts(tmp_path / "a.h5ad", draw_counts(5_000, 5))
    b = write_counts(tmp_path / "b.h5ad", draw_counts(10, 5))
    out = tmp_path / "m.zarr"
    before = make_medians([a], out, say=quiet)
    (out / "datasets" / "a" / array / "c" / "0").unlink()
    with pytest.raises(DataError, match=r"digests of a are damaged"):
        make_medians([b], out, add=True, say=quiet)
    assert Medians.load(out).hash == before.hash


def test_digests_of_many_values_stay_small_and_near(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=60_000).astype(np.float32)
    starts = np.array([0, 10_000, 10_000, 60_000])
    digests = Digests.from_values(starts, values.copy())
    assert np.diff(digests.indptr).max() <= MAX_CENTROIDS
    found = digests.medians()
    assert np.isnan(found[1])
    np.testing.assert_allclose(found[[0, 2]], [np.median(values[:10_000]), np.median(values[10_000:])], rtol=1e-3)
    np.testing.assert_array_equal(digests.counts, np.diff(starts))


def test_a_tree_of_merges_is_near_one_flat_merge_and_the_truth() -> None:
    """Beyond 1,000 values a digest is an estimate: repeated merging must not add up its error."""
    values = np.random.default_rng(3).lognormal(sigma=1.5, size=64 * 700).astype(np.float32)
    own = [np.arange(1, dtype=np.int32)] * 64
    level = [Digests.from_values(np.array([0, 700]), part) for part in np.split(values, 64)]
    flat = Digests.merge(level, own, 1)
    while len(level) > 1:
        level = [Digests.merge(level[i : i + 4], own[:4], 1) for i in range(0, len(level), 4)]
    assert len(level[0].means) <= MAX_CENTROIDS
    assert level[0].counts.tolist() == flat.counts.tolist() == [len(values)]
    np.testing.assert_allclose([flat.medians()[0], level[0].medians()[0]], np.median(values), rtol=1e-3)


@given(st.permutations(range(6)))
def test_merge_does_not_depend_on_the_order(order: list[int]) -> None:
    rng = np.random.default_rng(1)
    parts = [
        Digests.from_values(np.array([0, 900, 1_000]), rng.lognormal(size=1_000).astype(np.float32)) for _ in range(6)
    ]
    own = [np.arange(2, dtype=np.int32)] * 6
    expected = Digests.merge(parts, own, 2)
    found = Digests.merge([parts[i] for i in order], own, 2)
    np.testing.assert_array_equal(found.means, expected.means)
    np.testing.assert_array_equal(found.weights, expected.weights)


@given(st.lists(st.floats(0.125, 8192, width=32), min_size=1, max_size=30))
def test_exact_median_is_that_of_float32_values(values: list[float]) -> None:
    array = np.array(values, np.float32)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as work:
        patch.setattr(exact_medians, "normalised_values", lambda partition: [(np.zeros(len(array), np.int32), array)])
        found, counts = exact_medians.exact_medians([None], 2, Workers(1), Path(work))  # type: ignore[list-item]
    assert found[0] == np.median(array.astype(np.float64))
    assert np.isnan(found[1])
    assert counts.tolist() == [len(values), 0]


def test_real_cells_digest_against_exact(real_data: Path, tmp_path: Path) -> None:
    table = GeneTable.read_csv(real_data / "genes_homo_sapiens.csv.gz")
    files = [real_data / "scp1884_gut_1020.h5ad", real_data / "cellxgene_220.h5ad"]
    lines: list[str] = []
    digest = make_medians(files, tmp_path / "d.zarr", gene_table=table, say=lines.append)
    exactly = make_medians(files, tmp_path / "e.zarr", gene_table=table, exact=True, say=quiet)
    assert "14,860 of 18,708 genes mapped (32 by id, 14,828 by symbol)" in lines[1]
    assert digest.genes == exactly.genes
    np.testing.assert_array_equal(digest.counts, exactly.counts)
    seen = digest.counts > 0
    kept = seen & (digest.counts <= MAX_CENTROIDS)  # their digests hold every value: equal up to float32 rounding
    assert kept.sum() > 16_000
    np.testing.assert_allclose(digest.medians[kept], exactly.medians[kept], rtol=1e-6)
    np.testing.assert_allclose(digest.medians[seen], exactly.medians[seen], rtol=5e-3)
    assert np.median(np.abs(digest.medians[seen] / exactly.medians[seen] - 1)) < 1e-6

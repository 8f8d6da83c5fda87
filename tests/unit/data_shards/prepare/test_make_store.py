"""The store: which cells and data are kept, splits, the manifest, and how damage is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from data_shards.counts.count_options import CountOptions
from data_shards.counts.filters import CellFilter
from data_shards.counts.gene_ids import GeneTable
from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.inspect.store_summary import StoreSummary
from data_shards.inspect.verify import find_damage
from data_shards.medians.make_medians import make_medians
from data_shards.medians.medians_file import Medians
from data_shards.prepare import make_store as make_store_module
from data_shards.prepare import rank_datasets, rank_range
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store import writer
from data_shards.store.manifest import Manifest
from data_shards.store.writer import choose_block_cells
from data_shards.tokens.vocabulary import Vocabulary
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import SMALL, build, quiet, read, two_data_sets
from tests.support.random_stores import flip_byte


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return two_data_sets(tmp_path)


def test_what_lies_on_disk(tmp_path: Path, files: list[Path]) -> None:
    manifest = build(tmp_path, files)
    path = tmp_path / "s.zarr"
    assert {found.name for found in path.iterdir()} == {
        "zarr.json", "vocabulary.json", "medians.npy", "tokenizer.json", "one", "two",
    }  # fmt: skip
    vocabulary = json.loads((path / "vocabulary.json").read_text())
    assert vocabulary["kind"] == "as-is"
    assert vocabulary["genes"] == sorted(vocabulary["genes"])
    for entry, n_cells in zip(manifest.datasets, (60, 20), strict=True):
        tokens, indptr, split = (read(path, f"{entry.name}/{array}") for array in ("tokens", "indptr", "split"))
        assert (tokens.dtype, indptr.dtype, split.dtype) == (np.uint16, np.int64, np.uint8)
        assert len(indptr) == n_cells + 1 == entry.n_cells + 1
        assert indptr[-1] == len(tokens) == entry.n_tokens
        assert np.bincount(split, minlength=3).tolist() == [entry.n_train, entry.n_validation, entry.n_test]
        obs = pd.read_parquet(path / entry.name / "obs.parquet")
        assert obs["source_row"].tolist() == list(range(n_cells))
        assert obs["cell_id"].tolist() == [f"c{i}" for i in range(n_cells)]
        assert entry.source_file == f"{entry.name}.h5ad"
    assert pd.read_parquet(path / "one" / "obs.parquet")["cell_type"].tolist() == ["b", "a"] * 30
    assert Manifest.load(path) == manifest
    assert find_damage(path) == []
    text = "\n".join(StoreSummary.read(path).describe())
    assert f"  cells        80\n  tokens       {manifest.n_tokens:,}\n  genes        20 (as-is ids)" in text
    assert "    genes      20 genes, ids as they are in the index of var; 20 of the vocabulary" in text
    assert f"of the medians file {Medians.load(tmp_path / 'm.zarr').hash}" in text
    assert f"    cells      60, {manifest.datasets[0].n_tokens:,} tokens" in text


def test_manifest_hash_knows_content_and_not_the_machine(tmp_path: Path, files: list[Path]) -> None:
    first = build(tmp_path, files)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copies = [Path(shutil.copy(file, elsewhere)) for file in files]
    assert build(elsewhere, copies).hash == first.hash
    assert build(tmp_path, files, "2.zarr", splits=SplitOptions(seed=1, by="cell")).hash != first.hash
    assert build(tmp_path, files, "3.zarr", top_k=5).hash != first.hash
    assert build(tmp_path, files[::-1], "4.zarr").hash != first.hash


def test_shards_and_ranges_change_nothing(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path, files)
    monkeypatch.setattr(rank_datasets, "PART_CELLS", 16)
    monkeypatch.setattr(rank_range, "_CHUNK", 5)
    monkeypatch.setattr(rank_range, "_TOKENS", 100)
    monkeypatch.setattr(writer, "LAYOUT", SMALL)
    second = build(tmp_path, files, "2.zarr")
    assert [entry.content_hash for entry in first.datasets] == [entry.content_hash for entry in second.datasets]
    np.testing.assert_array_equal(read(tmp_path / "s.zarr", "one/tokens"), read(tmp_path / "2.zarr", "one/tokens"))
    assert len(list((tmp_path / "2.zarr/one/tokens/c").iterdir())) == -(-second.datasets[0].n_tokens // 256)
    # The check uses the chunk sizes that the array was written with, not the present ones.
    monkeypatch.undo()
    assert find_damage(tmp_path / "2.zarr") == []


def test_counts_stored_by_gene_make_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their copy by cell is in the work folder, which all workers share and which is removed at the end."""
    monkeypatch.setattr(rank_datasets, "PART_CELLS", 16)
    counts, obs = draw_counts(60, 20), {"donor_id": [f"d{i % 3}" for i in range(60)]}
    hashes = []
    for name, matrix, workers in (("by_cell", counts, 1), ("by_gene", counts.tocsc(), 2)):
        (tmp_path / name).mkdir()
        path = write_counts(tmp_path / name / "a.h5ad", matrix, obs=obs)
        hashes.append(build(tmp_path / name, [path], workers=workers).hash)
        assert sorted(found.name for found in path.parent.iterdir()) == ["a.h5ad", "m.zarr", "s.zarr"]
    assert hashes[0] == hashes[1]


def test_parts_of_other_options_lie_elsewhere(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that outlives its start may still write its part."""
    rank_range, folders = rank_datasets.rank_range, []

    def seen(plan: rank_datasets.RankPlan, task: rank_datasets.Range) -> rank_datasets.RangeSummary:
        folders.append(task.folder)
        return rank_range(plan, task)

    monkeypatch.setattr(rank_datasets, "rank_range", seen)
    for options in ({}, {"top_k": 3}, {"keep_values": True}, {"cells": CellFilter(min_genes=2)}):
        build(tmp_path, files[:1], **options)
        shutil.rmtree(tmp_path / "s.zarr")
    assert len(set(folders)) == len(folders) == 4


def test_filters_and_empty_cells(tmp_path: Path) -> None:
    counts = np.zeros((6, 4), np.float32)
    counts[0] = [1, 1, 1, 0]
    counts[1] = [0, 0, 0, 0]  # nothing
    counts[2] = [0, 0, 0, 9]  # one gene, outside the vocabulary
    counts[3] = [5, 0, 0, 0]  # one gene
    counts[4] = [1, 1, 0, 0]
    counts[5] = [9, 9, 9, 0]
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix(counts), list("wxyz"))
    genes = tmp_path / "genes.txt"
    genes.write_text("w\nx\ny\nnobody\n\n")
    lines: list[str] = []
    manifest = build(tmp_path, [path], genes_file=genes, say=lines.append)
    (entry,) = manifest.datasets
    assert (entry.n_cells, entry.empty_cells, entry.filtered_cells, entry.source_cells) == (4, 2, 0, 6)
    assert pd.read_parquet(tmp_path / "s.zarr/a/obs.parquet")["source_row"].tolist() == [0, 3, 4, 5]
    assert np.diff(read(tmp_path / "s.zarr", "a/indptr")).tolist() == [3, 1, 2, 3]
    assert any("3 of 4 genes have a median; 1 dropped (nobody)" in line for line in lines)
    assert any("2 without a token left out" in line for line in lines)
    manifest = build(tmp_path, [path], "f.zarr", cells=CellFilter(min_genes=2, min_counts=3))
    assert pd.read_parquet(tmp_path / "f.zarr/a/obs.parquet")["source_row"].tolist() == [0, 5]
    assert manifest.datasets[0].filtered_cells == 4
    with pytest.raises(DataError, match=r"no cell is left: 6 filtered"):
        build(tmp_path, [path], "g.zarr", cells=CellFilter(min_genes=5))
    genes.write_text("nobody\n")
    with pytest.raises(DataError, match=r"none of its 1 genes \(nobody …\) has a median"):
        build(tmp_path, [path], "g.zarr", genes_file=genes)
    assert not list(tmp_path.glob("*g.zarr*"))


def test_genes_file_takes_symbols_through_the_gene_table(tmp_path: Path) -> None:
    ids = tuple(f"ENSG0000000000{i}" for i in range(3))
    path = write_counts(tmp_path / "a.h5ad", draw_counts(10, 3), ["A", "B", "C"])
    make_medians([path], tmp_path / "m.zarr", gene_table=GeneTable(ids, ("A", "B", "C")), say=quiet)
    genes = tmp_path / "genes.txt"
    genes.write_text(f"C\n{ids[0]}.4\n")
    build(tmp_path, [path], genes_file=genes)
    vocabulary = json.loads((tmp_path / "s.zarr" / "vocabulary.json").read_text())
    assert vocabulary == {"kind": "ensembl", "genes": [ids[0], ids[2]]}
    assert (tmp_path / "s.zarr" / "gene_table.parquet").exists()
    manifest = Manifest.load(tmp_path / "s.zarr")
    assert (manifest.options["genes_file"], manifest.options["genes_file_hash"]) == ("genes.txt", hash_path(genes))
    report = manifest.datasets[0].genes
    assert (report["by_symbol"], report["by_id"], report["in_vocabulary"]) == (3, 0, 2)
    text = "\n".join(StoreSummary.read(tmp_path / "s.zarr").describe())
    assert f"--genes      genes.txt, SHA-256 {hash_path(genes)}" in text
    assert "3 of 3 genes mapped (0 by id, 3 by symbol) from the index of var; 2 of the vocabulary" in text
    assert find_damage(tmp_path / "s.zarr") == []


def test_bad_input_leaves_nothing_behind(tmp_path: Path, files: list[Path]) -> None:
    build(tmp_path, files)
    before = sorted(found.name for found in tmp_path.iterdir())
    bad = draw_counts(20, 20).toarray()
    bad[19, 19] = np.nan
    broken = write_counts(tmp_path / "bad.h5ad", sp.csr_matrix(bad))
    with pytest.raises(DataError, match=r"bad\.h5ad: cell 19, gene g0019: nan is not a number"):
        build(tmp_path, [*files, broken], "x.zarr")
    with pytest.raises(DataError, match=r"bad\.h5ad: cell 19, gene g0019: nan is not a number"):
        build(tmp_path, [broken], "x.zarr", workers=2)
    with pytest.raises(DataError, match=r"s\.zarr: exists already"):
        build(tmp_path, files)
    with pytest.raises(DataError, match=r"two data sets are named 'one'"):
        build(tmp_path, [files[0], files[0]], "x.zarr")
    with pytest.raises(DataError, match=r"no such medians file"):
        make_store(files, tmp_path / "none.zarr", tmp_path / "x.zarr", say=quiet)
    with pytest.raises(DataError, match=r"has no raw counts"):
        build(tmp_path, files, "x.zarr", options=CountOptions(raw=True))
    broken.unlink()
    assert sorted(found.name for found in tmp_path.iterdir()) == before


def test_files_that_cannot_be_used_are_found_before_the_first_is_ranked(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_medians(files, tmp_path / "m.zarr", say=quiet)
    foreign = write_counts(tmp_path / "foreign.h5ad", draw_counts(5, 2), ["x", "y"])
    monkeypatch.setattr(make_store_module, "rank_datasets", None)
    with pytest.raises(DataError, match=r"foreign\.h5ad: none of its 2 genes"):
        build(tmp_path, [*files, foreign])
    with pytest.raises(DataError, match=r"two: no column 'donor_id' in obs"):
        build(tmp_path, files, splits=SplitOptions(donor_key="donor_id"))


def test_medians_without_a_value_make_no_store(tmp_path: Path) -> None:
    path = write_counts(tmp_path / "a.h5ad", sp.csr_matrix((4, 3), dtype=np.float32))
    with pytest.raises(DataError, match=r"no gene has a median"):
        build(tmp_path, [path])
    with pytest.raises(DataError, match=r"at least one gene"):
        Vocabulary("as-is", ())


@pytest.mark.parametrize("name", ["vocabulary.json", "zarr.json", "medians.npy", "gene_table.parquet", "__x", ".x"])
def test_data_sets_cannot_have_the_names_of_files_in_the_root(tmp_path: Path, files: list[Path], name: str) -> None:
    build(tmp_path, files)
    path = tmp_path / f"{name}.h5ad"
    shutil.copy(files[0], path)
    with pytest.raises(DataError, match=r"cannot name a data set: rename the file"):
        build(tmp_path, [path], "x.zarr")


@pytest.mark.parametrize(
    ("cells", "mean_tokens", "expected"),
    [
        ([1_000_000], 2048, 32),
        ([1_000_000], 250, 128),
        ([1_000_000], 1400, 64),
        ([1_000_000], 65_536 * 4, 1),
        ([700], 250, 8),
        ([63], 250, 1),
        ([10, 3], 250, 1),
    ],
)
def test_block_cells(cells: list[int], mean_tokens: int, expected: int) -> None:
    assert choose_block_cells(cells, mean_tokens * sum(cells)) == expected


@pytest.fixture
def damaged(tmp_path: Path, files: list[Path]) -> Path:
    build(tmp_path, files)
    return tmp_path / "s.zarr"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("array", ["tokens", "indptr", "split"])
def test_verify_names_damaged_and_missing_shards(damaged: Path, array: str) -> None:
    shard = damaged / "one" / array / "c" / "0"
    whole = shard.read_bytes()
    flip(shard, 20)
    problems = find_damage(damaged)
    assert problems
    assert all(f"one/{array}" in problem for problem in problems)
    shard.write_bytes(whole[: len(whole) // 2])
    assert any(str(shard) in problem for problem in find_damage(damaged))
    shard.unlink()
    assert any(f"{shard}: is missing" in problem for problem in find_damage(damaged))
    shard.write_bytes(whole)
    assert find_damage(damaged) == []


def test_verify_names_the_chunk(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LAYOUT", SMALL)
    build(tmp_path, files)
    shard = tmp_path / "s.zarr/one/tokens/c/1"
    flip_byte(shard, 0)
    monkeypatch.undo()
    (problem,) = find_damage(tmp_path / "s.zarr")
    assert f"{shard}: chunk 0 is damaged" in problem
    assert "gm-train data verify" not in problem


def test_verify_finds_swapped_content_and_changed_files(damaged: Path) -> None:
    # The array is readable but has other content than was written: only the hash of the content detects it.
    group = zarr.open_group(damaged, mode="r+")
    tokens = read(damaged, "one/tokens")
    tokens[[0, 1]] = tokens[[1, 0]]
    group["one/tokens"][:] = tokens  # type: ignore[index]
    assert any("the content is not what was written" in problem for problem in find_damage(damaged))
    flip(damaged / "two" / "obs.parquet", 10)
    flip(damaged / "medians.npy", -1)
    (damaged / "vocabulary.json").unlink()
    text = "\n".join(find_damage(damaged))
    assert "two/obs.parquet: its SHA-256 is not that of the manifest" in text
    assert "medians.npy: its SHA-256" in text
    assert "vocabulary.json: is missing" in text


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("dither",), True),
        (("medians_hash",), "0"),
        (("options", "deny_file"), "other.txt"),
        (("datasets", 0, "min_mapped"), 0.75),
        (("datasets", 0, "splits", "seed"), 1),
        (("datasets", 1, "n_train"), 1),
        (("datasets", 0, "counts", "raw"), True),
        (("files", "medians.npy"), "0"),
        (("hash",), "0"),
    ],
)
def test_any_changed_attribute_of_the_manifest_is_noticed(damaged: Path, keys: tuple[Any, ...], value: object) -> None:
    metadata = damaged / "zarr.json"
    content = json.loads(metadata.read_text())
    parent = content["attributes"]
    for key in keys[:-1]:
        parent = parent[key]
    assert parent[keys[-1]] != value
    parent[keys[-1]] = value
    metadata.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"the manifest is damaged"):
        Manifest.load(damaged)


def test_damaged_manifest_is_refused(damaged: Path) -> None:
    metadata = damaged / "zarr.json"
    content = json.loads(metadata.read_text())
    content["attributes"]["block_cells"] = 64
    metadata.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"the manifest is damaged"):
        Manifest.load(damaged)
    content["attributes"]["schema"] = 99
    metadata.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"layout version 99"):
        Manifest.load(damaged)
    metadata.unlink()
    with pytest.raises(DataError, match=r"not a token store"):
        Manifest.load(damaged)
    with pytest.raises(DataError, match=r"no such store"):
        Manifest.load(damaged / "none")


def test_real_data_sets_in_one_store(real_data: Path, tmp_path: Path) -> None:
    files = [real_data / "scp1884_gut_1020.h5ad", real_data / "cellxgene_220.h5ad"]
    table = GeneTable.read_csv(real_data / "genes_homo_sapiens.csv.gz")
    make_medians(files, tmp_path / "m.zarr", gene_table=table, say=quiet)
    lines: list[str] = []
    manifest = build(tmp_path, files, say=lines.append)
    assert [entry.n_cells for entry in manifest.datasets] == [1020, 220]
    assert manifest.kind == "ensembl"
    assert manifest.n_genes > 15_000
    assert [entry.split_by for entry in manifest.datasets] == ["donor", "donor"]
    assert find_damage(tmp_path / "s.zarr") == []
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(["EPCAM", "PTPRC", "MS4A1", "ENSG00000141510", "COL1A1"]))
    small = build(tmp_path, files, "small.zarr", genes_file=genes, say=lines.append)
    assert small.n_genes == 5
    assert sum(entry.empty_cells for entry in small.datasets) > 0


def test_a_medians_file_is_no_store(tmp_path: Path) -> None:
    make_medians([write_counts(tmp_path / "a.h5ad", draw_counts(30, 20))], tmp_path / "m.zarr", say=quiet)
    with pytest.raises(DataError, match=r"m\.zarr: is a medians file, not a token store: give the store"):
        Manifest.load(tmp_path / "m.zarr")

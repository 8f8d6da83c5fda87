"""Cells are found again in copied, cut, shuffled, renamed and re-encoded files, and only the same cells are."""

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.corpora.import_corpus import import_corpus
from data_shards.counts.count_options import CountOptions
from data_shards.counts.filters import CellFilter
from data_shards.counts.gene_ids import GeneTable
from data_shards.errors import DataError
from data_shards.files.location import location_of
from data_shards.inspect.lookup import FEW_GENES, LEFT_OUT, Found, KnownCells, KnownDataset, look_up
from data_shards.inspect.lookup_report import describe, write_table
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store import writer
from data_shards.store.arrays import StoredArray
from data_shards.store.copy_hashes import copy_hashes
from data_shards.store.manifest import TEST, TRAIN, VALIDATION, Manifest
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import SMALL, build, quiet, read
from tests.support.http_store import serve
from tests.support.ranked_corpora import table_of, write_parquet

SPLITS = SplitOptions(by="cell", validation=0.2, test=0.2)
GENES = [f"g{i:04d}" for i in range(60)]


class Known:
    """A store of two data sets with cells in all three splits, and the counts that it was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = {"one": draw_counts(90, 60, 1), "two": draw_counts(40, 60, 2)}
        self.files = [write_counts(folder / f"{name}.h5ad", counts) for name, counts in self.counts.items()]
        build(folder, self.files, splits=SPLITS)
        self.store = folder / "s.zarr"
        self.cells = KnownCells.of_store(self.store)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(tmp_path_factory.mktemp("known"))


def split_of(store: Path, name: str) -> np.ndarray:
    return read(store, f"{name}/split")


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_file_of_the_store(known: Known, name: str) -> None:
    found = look_up(known.folder / f"{name}.h5ad", known.cells)
    number = ["one", "two"].index(name)
    assert [one.entry.name for one in found.same_file] == [name]
    assert (found.data_set == number).all()
    assert found.row.tolist() == list(range(known.counts[name].shape[0]))
    assert found.place.tolist() == split_of(known.store, name).tolist()
    entry = known.cells.datasets[number].entry
    assert found.by_dataset[number].tolist() == [entry.n_train, entry.n_validation, entry.n_test, 0]
    assert found.by_dataset[1 - number].sum() == 0
    assert found.by_place == [entry.n_train, entry.n_validation, entry.n_test, 0]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    storage=st.sampled_from(["csr", "csc", "dense", "zarr"]),
    dtype=st.sampled_from(["int32", "int64", "uint16", "float32", "float64"]),
    n_cells=st.integers(1, 90),
    new_genes=st.integers(0, 5),
    dropped_genes=st.booleans(),
)
def test_what_does_not_change_a_hash(
    known: Known,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    storage: str,
    dtype: str,
    n_cells: int,
    new_genes: int,
    dropped_genes: bool,
) -> None:
    """Cells cut, shuffled, repeated and renamed; genes reordered, dropped where zero, and added; another storage."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(90, size=n_cells)
    counts, genes = known.counts["one"].toarray()[rows], list(GENES)
    kept = np.flatnonzero(counts.any(axis=0)) if dropped_genes else np.arange(60)
    outside = rng.poisson(2.0, (n_cells, new_genes))
    counts = np.hstack([counts[:, kept], outside])
    genes = [genes[i] for i in kept] + [f"new{i}" for i in range(new_genes)]
    order = rng.permutation(len(genes))
    counts, genes = counts[:, order].astype(dtype), [genes[i] for i in order]
    matrix: Any = counts if storage == "dense" else (sp.csc_matrix if storage == "csc" else sp.csr_matrix)(counts)
    path = tmp_path_factory.mktemp("copy") / ("copy.zarr" if storage == "zarr" else "copy.h5ad")
    names = [f"renamed {i}" for i in range(n_cells)]
    data = ad.AnnData(matrix, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=genes))
    data.write_zarr(path) if storage == "zarr" else data.write_h5ad(path)
    found = look_up(path, known.cells)
    assert found.same_file == ()
    assert found.data_set.tolist() == [0] * n_cells
    assert found.row.tolist() == rows.tolist()
    assert found.place.tolist() == split_of(known.store, "one")[rows].tolist()


@settings(max_examples=15)
@given(data=st.data())
def test_a_changed_count_is_not_found(
    known: Known, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    counts = known.counts["one"].toarray()
    cell, gene = data.draw(st.integers(0, 89)), data.draw(st.integers(0, 59))
    counts[cell, gene] += data.draw(st.sampled_from([1, 2, 7])) if counts[cell, gene] < 2 else -1
    path = write_counts(tmp_path_factory.mktemp("changed") / "changed.h5ad", sp.csr_matrix(counts))
    found = look_up(path, known.cells)
    assert np.flatnonzero(found.place < 0).tolist() == [cell]


def test_counts_at_other_genes_are_not_found(known: Known, tmp_path: Path) -> None:
    """The same counts, but every gene has the name of its neighbour."""
    path = write_counts(tmp_path / "moved.h5ad", known.counts["one"], [*GENES[1:], GENES[0]])
    assert (look_up(path, known.cells).place < 0).all()


def test_cells_of_another_draw_are_not_found(known: Known, tmp_path: Path) -> None:
    path = write_counts(tmp_path / "other.h5ad", draw_counts(500, 60, 3))
    found = look_up(path, known.cells)
    assert found.by_place == [0, 0, 0, 0]
    assert "  found      0 of 500 (0.0%): 0 training, 0 validation, 0 test" in describe(found, known.cells)


def test_a_cell_without_all_its_genes_is_not_found_and_the_report_says_so(known: Known, tmp_path: Path) -> None:
    counts = known.counts["one"][:, :30]
    path = write_counts(tmp_path / "cut.h5ad", sp.csr_matrix(counts), GENES[:30])
    found = look_up(path, known.cells)
    whole = known.counts["one"][:, 30:].getnnz(axis=1) == 0
    assert ((found.place >= 0) == (whole & (counts.getnnz(axis=1) > 0))).all()
    text = "\n".join(describe(found, known.cells))
    assert "the file has 30 of the vocabulary's genes, a data set has up to 60" in text


def test_log_values_are_found_by_the_counts_that_they_came_from(known: Known, tmp_path: Path) -> None:
    counts = known.counts["one"].copy()
    smallest = np.minimum.reduceat(counts.data, counts.indptr[:-1])
    totals = np.asarray(counts.sum(axis=1)).ravel()
    logs = counts.multiply(1 / totals[:, None]).multiply(1e4).log1p().tocsr()
    path = write_counts(tmp_path / "logs.h5ad", logs)
    found = look_up(path, known.cells, CountOptions(counts_from="log1p"))
    assert ((found.place >= 0) == (smallest == 1)).all()
    with pytest.raises(DataError, match="is not a whole count: name the raw counts with --layer"):
        look_up(path, known.cells)


def test_a_gene_that_is_delivered_twice_is_summed(known: Known, tmp_path: Path) -> None:
    counts = known.counts["one"].toarray()
    part = np.floor(counts[:, :1] / 2)
    twice = np.hstack([part, counts[:, 1:], counts[:, :1] - part])
    data = ad.AnnData(sp.csr_matrix(twice), var=pd.DataFrame({"id": [*GENES, GENES[0]]}, index=map(str, range(61))))
    data.write_h5ad(tmp_path / "twice.h5ad")
    found = look_up(tmp_path / "twice.h5ad", known.cells, CountOptions(gene_column="id"))
    assert (found.place >= 0).all()


def ensembl(n: int, prefix: str = "ENSG") -> list[str]:
    return [f"{prefix}{i:011d}" for i in range(n)]


def test_symbols_and_ids_of_the_same_cells_agree_and_another_species_is_refused(tmp_path: Path) -> None:
    counts = draw_counts(30, 20, 1)
    path = write_counts(tmp_path / "ids.h5ad", counts, [f"{gene}.7" for gene in ensembl(20)])
    table = GeneTable(tuple(ensembl(20)), tuple(f"SYM{i}" for i in range(20)))
    make_medians([path], tmp_path / "m.zarr", CountOptions(), table, say=quiet)
    build(tmp_path, [path], splits=SPLITS)
    known = KnownCells.of_store(tmp_path / "s.zarr")
    symbols = write_counts(tmp_path / "symbols.h5ad", counts, [f"SYM{i}" for i in range(20)])
    assert look_up(symbols, known).row.tolist() == list(range(30))
    mouse = write_counts(tmp_path / "mouse.h5ad", counts, ensembl(20, "ENSMUSG"))
    with pytest.raises(
        DataError, match=r"mouse.h5ad: its genes are of another species, mouse \(ENSMUSG…\), than those"
    ):
        look_up(mouse, known)
    odd = write_counts(tmp_path / "odd.h5ad", counts, [f"x{i}" for i in range(20)])
    with pytest.raises(DataError, match=r"only 0 of 20 genes .0.0%. have an Ensembl id, less than --min-mapped 0.5"):
        look_up(odd, known)


def test_cells_of_several_data_sets_count_as_training_first(tmp_path: Path) -> None:
    counts = draw_counts(40, 30, 1)
    first, again = (write_counts(tmp_path / f"{name}.h5ad", counts) for name in ("first", "again"))
    splits = SplitOptions(by="cell", validation=0.4)
    build(tmp_path, [first, again], splits=splits)
    known = KnownCells.of_store(tmp_path / "s.zarr")
    found = look_up(first, known)
    one, two = (split_of(tmp_path / "s.zarr", name) for name in ("first", "again"))
    assert {entry.entry.name for entry in found.same_file} == {"first", "again"}  # the files are equal
    assert found.place.tolist() == np.minimum(one, two).tolist()
    assert found.data_set.tolist() == np.where(two < one, 1, 0).tolist()
    assert found.by_dataset.tolist() == [np.bincount(split, minlength=4).tolist() for split in (one, two)]


def test_equal_cells_within_a_data_set_count_as_training_first(tmp_path: Path) -> None:
    counts = sp.vstack([draw_counts(1, 30, 1)] * 50).tocsr()
    path = write_counts(tmp_path / "same.h5ad", counts)
    build(tmp_path, [path], splits=SplitOptions(by="cell", validation=0.5))
    found = look_up(path, KnownCells.of_store(tmp_path / "s.zarr"))
    split = split_of(tmp_path / "s.zarr", "same")
    assert set(split) == {TRAIN, VALIDATION}
    assert set(found.row) == {int(np.flatnonzero(split == TRAIN)[0])}
    assert found.by_place == [50, 0, 0, 0]


def test_cells_with_few_genes_are_counted_apart_and_empty_ones_left_out(known: Known, tmp_path: Path) -> None:
    counts = known.counts["one"].toarray()
    counts[:3] = 0
    path = write_counts(tmp_path / "few.h5ad", sp.csr_matrix(counts))
    found = look_up(path, known.cells)
    assert found.place[:3].tolist() == [-1, -1, -1]
    few = int((known.counts["one"][3:].getnnz(axis=1) < FEW_GENES).sum())
    assert 0 < few < 87
    text = "\n".join(describe(found, known.cells))
    assert "cells      90; 3 have no count of a gene of the vocabulary and are not looked up" in text
    assert "found      87 of 87 (100.0%)" in text
    assert f"{few} of them have fewer than 20 genes of the vocabulary: other cells can have the same counts" in text


def test_filtered_cells_keep_their_rows(known: Known, tmp_path: Path) -> None:
    """Hashes stay with the cells that a filter keeps, and with cells without a token in between."""
    make_medians(known.files[:1], tmp_path / "m.zarr", say=quiet)
    counts = known.counts["one"].toarray()
    counts[::7] = 0
    path = write_counts(tmp_path / "gaps.h5ad", sp.csr_matrix(counts))
    build(tmp_path, [path], cells=CellFilter(min_genes=18), splits=SPLITS)
    obs = pd.read_parquet(tmp_path / "s.zarr/gaps/obs.parquet")
    found = look_up(path, KnownCells.of_store(tmp_path / "s.zarr"))
    kept = np.flatnonzero(found.place >= 0)
    assert 0 < len(kept) < 77
    assert kept.tolist() == obs["source_row"].tolist()
    assert found.row[kept].tolist() == list(range(len(kept)))


def test_hashes_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards give the same answer as one; no read is larger than a shard, whatever the store's size."""
    path = write_counts(tmp_path / "many.h5ad", draw_counts(200, 20, 5))
    build(tmp_path, [path], "whole.zarr", splits=SPLITS)
    monkeypatch.setattr(writer, "LAYOUT", SMALL)
    build(tmp_path, [path], "pieces.zarr", splits=SPLITS)
    sizes: list[int] = []
    begin = StoredArray.begin

    def watched(self: StoredArray, start: int, stop: int, *more: Any, **named: Any) -> Any:
        sizes.append(stop - start)
        return begin(self, start, stop, *more, **named)

    expected = look_up(path, KnownCells.of_store(tmp_path / "whole.zarr"))
    monkeypatch.setattr(StoredArray, "begin", watched)
    found = look_up(path, KnownCells.of_store(tmp_path / "pieces.zarr"))
    assert len(sizes) > 10
    assert max(sizes) == 16
    for name in ("row", "place", "data_set", "by_dataset"):
        assert (getattr(found, name) == getattr(expected, name)).all()


def test_a_store_at_a_url(known: Known) -> None:
    with serve(known.folder) as served:
        found = look_up(known.files[1], KnownCells.of_store(f"{served.url}/s.zarr"))
    assert found.row.tolist() == list(range(40))


def test_data_sets_without_hashes_are_named_with_the_reason(known: Known, tmp_path: Path) -> None:
    """An imported corpus has no counts: its file is compared, its cells are not."""
    (tmp_path / "tokens.json").write_text(json.dumps({gene: 4 + i for i, gene in enumerate(GENES)}))
    (tmp_path / "medians.json").write_text(json.dumps(dict.fromkeys(GENES, 1.0)))
    corpus = write_parquet(tmp_path / "corpus", [table_of([[4, 5, 6], [7, 8]], name=pa.array(["a", "b"]))])
    file = next(corpus.glob("*.parquet"))
    store = tmp_path / "i.zarr"
    manifest = import_corpus(
        [file], tmp_path / "tokens.json", tmp_path / "medians.json", store, name="ranks", say=quiet
    )
    assert manifest.datasets[0].cell_hash is None
    cells = KnownCells.of_store(store)
    found = look_up(file, cells)
    text = "\n".join(describe(found, cells))
    assert "file       is the one that data set ranks was made from: 2 training, 0 validation, 0 test cells" in text
    assert "cells      were not looked up: only files can be compared" in text
    assert "no hashes  of the cells of ranks: it was imported as ranks, without counts" in text
    other = look_up(known.files[0], cells)
    assert other.same_file == ()
    # Counts beside it are compared cell by cell; the corpus is still named.
    make_store(known.files[1:], None, store, add=True, splits=SPLITS, say=quiet)
    both = KnownCells.of_store(store)
    found = look_up(known.files[1], both)
    assert (found.data_set == 1).all()
    assert any(line.startswith("  no hashes  of the cells of ranks") for line in describe(found, both))


def test_a_data_set_that_was_left_out_of_training(known: Known) -> None:
    one, two = known.cells.datasets
    cells = KnownCells("run", known.cells.tokenizer, (KnownDataset(one.entry, one.arrays, trained=False), two))
    found = look_up(known.files[0], cells)
    assert found.by_place == [0, one.entry.n_validation, one.entry.n_test, one.entry.n_train]
    assert set(found.place) == {VALIDATION, TEST, LEFT_OUT}
    text = "\n".join(describe(found, cells))
    assert f"{one.entry.n_train} left out" in text
    assert "test cells; the run left it out of training (data.weights)" in text


def test_the_table_has_a_row_for_each_cell(known: Known, tmp_path: Path) -> None:
    counts = known.counts["two"].toarray()[[5, 1, 2]]
    counts[1, 3] += 100
    path = write_counts(tmp_path / "three.h5ad", sp.csr_matrix(counts))
    found = look_up(path, known.cells)
    write_table(found, known.cells, CountOptions(), tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    words = {TRAIN: "training", VALIDATION: "validation", TEST: "test"}
    split = split_of(known.store, "two")
    assert table["cell"].tolist() == ["c0", "c1", "c2"]
    assert table["tokens"].tolist() == np.count_nonzero(counts, axis=1).tolist()
    assert table["data_set"].fillna("").tolist() == ["two", "", "two"]
    assert table["row"].fillna(-1).tolist() == [5, -1, 2]
    assert table["split"].fillna("").tolist() == [words[split[5]], "", words[split[2]]]
    with pytest.raises(DataError, match=r"t.csv: exists already"):
        write_table(found, known.cells, CountOptions(), tmp_path / "t.csv")


def test_a_copy_of_the_hashes_finds_the_same(known: Known, tmp_path: Path) -> None:
    manifest = Manifest.load(known.store)
    copy_hashes(location_of(known.store), manifest, tmp_path / "copy")
    assert Manifest.load(tmp_path / "copy") == manifest
    assert not list((tmp_path / "copy").rglob("tokens"))
    datasets = tuple(KnownDataset(one.entry, tmp_path / "copy") for one in known.cells.datasets)
    cells = KnownCells("copy", known.cells.tokenizer, datasets)

    def same(ours: Found, theirs: Found) -> bool:
        return all((getattr(ours, name) == getattr(theirs, name)).all() for name in ("row", "place", "by_dataset"))

    assert all(same(look_up(path, cells), look_up(path, known.cells)) for path in known.files)


def test_files_that_cannot_be_used(known: Known, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.h5ad: no such file: give a count file"):
        look_up(tmp_path / "none.h5ad", known.cells)
    empty = write_counts(tmp_path / "empty.h5ad", sp.csr_matrix((0, 60), dtype=np.float32))
    with pytest.raises(DataError, match="has 0 cells and 60 genes: there is nothing to read"):
        look_up(empty, known.cells)
    strange = write_counts(tmp_path / "strange.h5ad", draw_counts(5, 4), ["a", "b", "c", "d"])
    with pytest.raises(DataError, match=r"none of its 4 genes .* is in the vocabulary"):
        look_up(strange, known.cells)

"""Cells read again from their counts: they have the tokens of the store; wrong files are refused."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from data_shards.counts.filters import CellFilter
from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import TEST, TRAIN, VALIDATION, Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.evaluation.cells import read_cells
from gm_train.evaluation.chosen_cells import usual_split
from tests.conftest import Atlas, write_cells
from tests.support.counts_to_stores import read
from tests.support.evaluation_cases import store_with_test_cells


def test_max_cells_reads_a_fixed_part_a_quarter_of_it_held_out(atlas: Atlas) -> None:
    tokenizer = Tokenizer.load(atlas.store)
    everything = read_cells(atlas.store, atlas.files, tokenizer)
    some, again = (read_cells(atlas.store, atlas.files, tokenizer, max_cells=40) for _ in range(2))
    assert (len(some.row), int(some.held_out.sum())) == (40, 10)
    assert np.array_equal(some.row, again.row)
    numbers = {
        pair: i for i, pair in enumerate(zip(everything.data_set.tolist(), everything.row.tolist(), strict=True))
    }
    for i, pair in enumerate(zip(some.data_set.tolist(), some.row.tolist(), strict=True)):
        assert some.plain.cell(i).tolist() == everything.plain.cell(numbers[pair]).tolist()


def test_rows_are_found_after_filtering_and_missing_labels_are_none(tmp_path: Path) -> None:
    path = write_cells(tmp_path / "cells.h5ad", 60, 40, seed=3)
    source = ad.read_h5ad(path)
    source.obs["cell_type"] = source.obs["cell_type"].astype(object)
    source.obs.iloc[5:25, source.obs.columns.get_loc("cell_type")] = None
    source.write_h5ad(path)
    detected = (source.X.toarray() > 0).sum(1)
    threshold = int(np.median(detected))
    make_medians([path], tmp_path / "medians.zarr", say=lambda line: None)
    make_store(
        [path],
        tmp_path / "medians.zarr",
        tmp_path / "store.zarr",
        cells=CellFilter(min_genes=threshold),
        splits=SplitOptions(by="cell", validation=0.3),
        say=lambda line: None,
    )
    cells = read_cells(tmp_path / "store.zarr", [path], Tokenizer.load(tmp_path / "store.zarr"), "cell_type")
    kept = np.flatnonzero(detected >= threshold)
    assert cells.plain.lengths.tolist() == detected[kept].tolist()
    assert cells.labels is not None
    assert [label is None for label in cells.labels] == [5 <= row < 25 for row in kept]


def test_batches_are_read_beside_labels(atlas: Atlas) -> None:
    tokenizer = Tokenizer.load(atlas.store)
    cells = read_cells(atlas.store, atlas.files, tokenizer, "cell_type", batch="donor_id")
    assert (cells.label, cells.batch) == ("cell_type", "donor_id")
    assert cells.labels is not None
    assert cells.batches is not None
    sources = [ad.read_h5ad(path).obs for path in atlas.files]
    for i, (which, row) in enumerate(zip(cells.data_set, cells.source_row, strict=True)):
        assert cells.labels[i] == sources[which]["cell_type"].iloc[row]
        assert cells.batches[i] == sources[which]["donor_id"].iloc[row]
    assert read_cells(atlas.store, atlas.files, tokenizer, "cell_type").batches is None


def test_data_sets_whose_files_are_not_given_are_named(atlas: Atlas) -> None:
    cells = read_cells(atlas.store, atlas.files[1:], Tokenizer.load(atlas.store))
    assert cells.missing == ("first",)
    assert set(cells.data_set) == {1}


def test_files_and_tokenizers_of_other_stores_are_refused(atlas: Atlas, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(atlas.store)
    (tmp_path / "third.h5ad").touch()
    with pytest.raises(DataError, match=r"not of .* whose data sets are first, second"):
        read_cells(atlas.store, [tmp_path / "third.h5ad"], tokenizer)
    changed = write_cells(tmp_path / "first.h5ad", 150, 80, seed=9)
    with pytest.raises(DataError, match="its hash differs"):
        read_cells(atlas.store, [changed], tokenizer)
    with pytest.raises(DataError, match="no such file"):
        read_cells(atlas.store, [tmp_path / "second.h5ad"], tokenizer)
    with pytest.raises(DataError, match="other medians than the model"):
        read_cells(atlas.store, atlas.files, replace(tokenizer, medians=tokenizer.medians * 2))
    with pytest.raises(DataError, match="no column 'nothing' in obs: --label can be one of cell_id, cell_type"):
        read_cells(atlas.store, atlas.files, tokenizer, "nothing")


def test_a_store_without_held_out_cells_cannot_be_evaluated(tmp_path: Path) -> None:
    path = write_cells(tmp_path / "cells.h5ad", 20, 30, seed=4)
    make_medians([path], tmp_path / "medians.zarr", say=lambda line: None)
    store = tmp_path / "store.zarr"
    make_store([path], tmp_path / "medians.zarr", store, splits=SplitOptions(by="none"), say=lambda line: None)
    with pytest.raises(DataError, match="20 training and 0 validation cells"):
        read_cells(store, [path], Tokenizer.load(store))


@pytest.mark.parametrize(("split", "scored"), [(None, "test"), ("test", "test"), ("validation", "validation")])
def test_the_held_out_cells_are_those_of_the_split_and_test_cells_by_default(
    split: str | None, scored: str, tmp_path: Path
) -> None:
    atlas = store_with_test_cells(tmp_path)
    cells = read_cells(atlas.store, atlas.files, Tokenizer.load(atlas.store), split=split)
    assert cells.split == scored
    splits = [read(atlas.store, f"{entry.name}/split") for entry in Manifest.load(atlas.store).datasets]
    of_cell = np.array([splits[which][row] for which, row in zip(cells.data_set, cells.row, strict=True)])
    assert set(of_cell[~cells.held_out]) == {TRAIN}
    assert set(of_cell[cells.held_out]) == {{"test": TEST, "validation": VALIDATION}[scored]}
    assert cells.held_out.sum() == sum((one == of_cell[cells.held_out][0]).sum() for one in splits)


def test_without_test_cells_validation_cells_are_scored_and_asking_for_test_cells_names_the_way_out(
    atlas: Atlas, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(atlas.store)
    assert read_cells(atlas.store, atlas.files, tokenizer).split == "validation"
    n_validation = sum(entry.n_validation for entry in Manifest.load(atlas.store).datasets)
    with pytest.raises(DataError) as refused:
        read_cells(atlas.store, atlas.files, tokenizer, split="test")
    assert "0 test cells: an evaluation needs both" in str(refused.value)
    assert "hold cells out with `gm-train data shards --test`" in str(refused.value)
    assert f"or score the {n_validation} validation cells with `--split validation`" in str(refused.value)


def test_the_usual_split_is_that_of_the_files_that_are_given(tmp_path: Path) -> None:
    """A data set without test cells is scored on its validation cells, whatever the others of its store have."""
    atlas = store_with_test_cells(tmp_path)
    more = write_cells(tmp_path / "more.h5ad", 40, 80, seed=9)
    splits = SplitOptions(by="cell", validation=0.3)
    make_store([more], None, atlas.store, add=True, splits=splits, say=lambda line: None)
    entries = Manifest.load(atlas.store).datasets
    assert [usual_split([entry]) for entry in entries] == ["test", "test", "validation"]
    assert usual_split(entries) == "test"
    assert read_cells(atlas.store, [more], Tokenizer.load(atlas.store)).split == "validation"
    everything = [*atlas.files, more]
    tokenizer = Tokenizer.load(atlas.store)
    assert read_cells(atlas.store, everything, tokenizer).not_scored == ("more",)
    assert read_cells(atlas.store, everything, tokenizer, split="validation").not_scored == ()
    assert read_cells(atlas.store, atlas.files, tokenizer).not_scored == ()

"""Cells and stores of an ablation: made once, divided and split as the definition says."""

from collections import Counter
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from data_shards.errors import OptionError
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TEST, TRAIN, Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.ablation.cells import CellFiles, cell_files, random_sets
from gm_train.ablation.definition import Cells, Split, StoreChoice
from gm_train.ablation.stores import Stores

ATLAS = {"cells": 120, "genes": 60, "cell_types": 3, "programmes": 4, "genes_per_programme": 10, "donors": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def simulated(folder: Path) -> CellFiles:
    return cell_files(Cells("atlas", ATLAS, [0.7, 0.2, 0.1]), None, folder)


def test_parts_divide_the_atlas(simulated: CellFiles, folder: Path) -> None:
    parts = [ad.read_h5ad(file) for file in simulated.files]
    assert [file.name for file in simulated.files] == ["atlas-1.h5ad", "atlas-2.h5ad", "atlas-3.h5ad"]
    assert [part.n_obs for part in parts] == [84, 24, 12]
    whole = ad.read_h5ad(simulated.folder / "atlas.h5ad")
    assert sorted(name for part in parts for name in part.obs_names) == sorted(whole.obs_names)
    assert (parts[2].X != whole[parts[2].obs_names].X).nnz == 0
    before = {file: file.stat().st_mtime_ns for file in simulated.files}
    assert cell_files(Cells("atlas", ATLAS, [0.7, 0.2, 0.1]), None, folder) == simulated
    assert {file: file.stat().st_mtime_ns for file in simulated.files} == before
    assert cell_files(Cells("atlas", ATLAS), None, folder).files == (
        folder / cell_files(Cells("atlas", ATLAS), None, folder).folder.name / "atlas.h5ad",
    )


def test_random_sets_keep_sizes_overlaps_and_how_many_cells_have_a_gene(simulated: CellFiles) -> None:
    def sets(text: str) -> list[set[str]]:
        return [set(line.split("\t")[2:]) for line in text.splitlines()]

    text = (simulated.folder / "atlas.gmt").read_text()
    real, random = sets(text), sets((simulated.folder / "random.gmt").read_text())
    assert [len(genes) for genes in random] == [len(genes) for genes in real] == [10] * 4
    assert [[len(a & b) for a in random] for b in random] == [[len(a & b) for a in real] for b in real]
    assert random != real
    atlas = ad.read_h5ad(simulated.folder / "atlas.h5ad")
    assert random_sets(text, atlas, AtlasOptions(**ATLAS).seed) == (simulated.folder / "random.gmt").read_text()
    n_cells = np.asarray((atlas.X > 0).sum(0)).ravel()
    third = dict(zip(atlas.var_names[np.argsort(n_cells, kind="stable")], np.arange(60) // 20, strict=True))
    for a, b in zip(real, random, strict=True):
        assert Counter(third[gene] for gene in a) == Counter(third[gene] for gene in b)


def test_the_same_cells_and_split_are_the_same_store(simulated: CellFiles, folder: Path) -> None:
    stores = Stores(folder / "stores", simulated, Split("donor", 0.2, 0.2))
    path = stores.make(StoreChoice(top_k=20), 0)
    made = (path / "zarr.json").stat().st_mtime_ns
    assert stores.make(StoreChoice(top_k=20), 0) == path
    assert (path / "zarr.json").stat().st_mtime_ns == made
    others = [stores.path(StoreChoice(top_k=20), 1), stores.path(StoreChoice(top_k=20, dither=True), 0)]
    assert len({path, *others}) == 3
    # A donor is in one split, whichever part its cells are in.
    splits: dict[str, set[int]] = {}
    for entry, file in zip(Manifest.load(path).datasets, simulated.files, strict=True):
        found = open_array(path, entry.name, "split").read(0, entry.n_cells)
        for donor, split in zip(ad.read_h5ad(file).obs["donor_id"], found.tolist(), strict=True):
            splits.setdefault(str(donor), set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(split for (split,) in splits.values()) == {TRAIN: 3, 1: 1, TEST: 1}


def test_dithered_ranks_have_the_same_test_cells(simulated: CellFiles, folder: Path) -> None:
    stores = Stores(folder / "dithered", simulated, Split("cell", 0.1, 0.3))
    plain, dithered, seed1 = (
        stores.make(choice, seed)
        for choice, seed in ((StoreChoice(), 0), (StoreChoice(dither=True), 0), (StoreChoice(), 1))
    )
    first = Manifest.load(plain).datasets[0]
    splits = [open_array(path, first.name, "split").read(0, first.n_cells) for path in (plain, dithered, seed1)]
    assert np.array_equal(splits[0], splits[1])
    assert not np.array_equal(splits[0], splits[2])
    assert Tokenizer.load(dithered).dither


def test_the_genes_that_vary_most_are_chosen(simulated: CellFiles, folder: Path) -> None:
    path = Stores(folder / "genes", simulated, Split("cell", 0.1, 0.2)).make(StoreChoice(variable_genes=15), 0)
    whole = ad.read_h5ad(simulated.folder / "atlas.h5ad")
    counts = whole.X.toarray()
    variances = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).var(axis=0)
    expected = set(whole.var_names[np.argsort(-variances)[:15]])
    assert set(Tokenizer.load(path).vocabulary.genes) == expected


def test_files_are_named_where_they_are_needed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="name it with --data FILE"):
        cell_files(Cells("data"), None, tmp_path)
    with pytest.raises(OptionError, match=r"--data .*gone\.h5ad: no such file"):
        cell_files(Cells("data"), tmp_path / "gone.h5ad", tmp_path)
    with pytest.raises(OptionError, match=r"--data x\.h5ad: the cells of this ablation are simulated"):
        cell_files(Cells("atlas", ATLAS), Path("x.h5ad"), tmp_path)

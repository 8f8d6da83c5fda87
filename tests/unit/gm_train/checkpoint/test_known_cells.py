"""`gm-train data lookup` of a checkpoint: what the run keeps, and what is used if that or the store is gone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.inspect.lookup import LEFT_OUT, KnownCells, look_up
from data_shards.inspect.lookup_report import describe
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from gm_train.checkpoint.find import Checkpoint, list_checkpoints
from gm_train.checkpoint.known_cells import CELL_HASHES, STORE, keep_cell_hashes, known_cells
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.counts_to_stores import contents
from tests.support.random_stores import flip_byte


@pytest.fixture(scope="module")
def trained(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that left `second` out of its training; its store is a copy of the atlas that may be moved."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(atlas.store, folder / "store.zarr")
    words = [*tiny_words(folder / "store.zarr", folder / "run"), "data.weights={second: 0}", "trainer.max_steps=4"]
    fit(load_config(*words, "optim.schedule_steps=4", "optim.warmup_steps=2"))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run and its store. The checkpoint and the run record the store of `trained`, at its old place."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def newest(folder: Path) -> Checkpoint:
    """The newest checkpoint; its files are not verified, because some tests change them."""
    return list_checkpoints(folder / "run/checkpoints")[-1]


def record_store(folder: Path, store: str) -> None:
    """Make run and checkpoint record another place of the store."""
    for path in (folder / "run/config.yaml", newest(folder).path / "config.yaml"):
        lines = [
            f"  store: {store}" if line.startswith("  store: ") else line for line in path.read_text().splitlines()
        ]
        path.write_text("\n".join(lines) + "\n")


def places(known: KnownCells) -> list[Path | None]:
    return [one.arrays for one in known.datasets]  # type: ignore[misc]


def test_a_run_keeps_hashes_and_a_checkpoint_the_manifest(trained: Path, atlas: Atlas) -> None:
    manifest = Manifest.load(atlas.store)
    checkpoint = newest(trained)
    assert Manifest.load(checkpoint.path / STORE) == manifest
    assert f"{STORE}/zarr.json" in checkpoint.files
    kept = trained / "run" / CELL_HASHES
    assert Manifest.load(kept) == manifest
    arrays = [path for path in (kept / "first").iterdir() if path.is_dir()]
    assert sorted(path.name for path in arrays) == ["cell_hash", "split"]
    known = known_cells(checkpoint)
    assert places(known) == [kept, kept]
    assert known.name == f"{checkpoint.path} (step 4, {cells_of(checkpoint):,} cells trained on, repeats included)"
    found = look_up(atlas.files[0], known)
    entry = manifest.datasets[0]
    assert found.by_place == [entry.n_train, entry.n_validation, entry.n_test, 0]
    assert f"hashes of the cells of first, second in {kept}" in "\n".join(describe(found, known))


def cells_of(checkpoint: Checkpoint) -> int:
    return int(json.loads((checkpoint.path / "position.json").read_text())["cells"])


def test_a_data_set_of_weight_0_was_not_trained_on(trained: Path, atlas: Atlas) -> None:
    entry = Manifest.load(atlas.store).datasets[1]
    found = look_up(atlas.files[1], known_cells(newest(trained)))
    assert found.by_dataset[1].tolist() == [0, entry.n_validation, entry.n_test, entry.n_train]
    assert (found.place == LEFT_OUT).sum() == entry.n_train


def test_the_identity_of_a_run_does_not_name_its_hashes(trained: Path) -> None:
    """A run goes on with a store that was made again and now has hashes."""
    identity = (newest(trained).path / "identity.json").read_text()
    assert "cell_hash" not in identity


def test_without_the_copy_the_store_is_read_where_it_is_or_is_said_to_be(folder: Path, trained: Path) -> None:
    shutil.rmtree(folder / "run" / CELL_HASHES)
    checkpoint = newest(folder)
    assert places(known_cells(checkpoint)) == [trained / "store.zarr"] * 2
    moved = folder / "moved.zarr"
    (folder / "store.zarr").rename(moved)
    record_store(folder, str(folder / "store.zarr"))
    nowhere = known_cells(checkpoint)
    assert places(nowhere) == [None, None]
    reason = f"neither {folder / 'run' / CELL_HASHES} nor the store {folder / 'store.zarr'} has them"
    assert nowhere.datasets[0].reason == f"{reason}: name the store with --store"
    assert places(known_cells(checkpoint, str(moved))) == [moved, moved]


def test_a_relative_place_is_found_by_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / "run" / CELL_HASHES)
    record_store(folder, str(folder / "store.zarr"))
    path = newest(folder).path / "config.yaml"
    path.write_text(path.read_text().replace(f"  store: {folder / 'store.zarr'}", "  store: store.zarr"))
    monkeypatch.chdir(tmp_path)
    assert places(known_cells(newest(folder))) == [folder / "store.zarr"] * 2
    (folder / "run/config.yaml").unlink()
    assert places(known_cells(newest(folder))) == [None, None]
    monkeypatch.chdir(folder)
    assert places(known_cells(newest(folder))) == [folder / "store.zarr"] * 2


def test_the_store_of_another_run_is_refused(folder: Path, tmp_path: Path, atlas: Atlas) -> None:
    path = write_cells(tmp_path / "other.h5ad", 60, 80, seed=9)
    medians = atlas.store.parent / "medians.zarr"
    make_store([path], medians, tmp_path / "other.zarr", top_k=48, say=lambda line: None)
    with pytest.raises(DataError, match=r"other.zarr: has no data set of .*: name the store of its training"):
        known_cells(newest(folder), str(tmp_path / "other.zarr"))
    with pytest.raises(DataError, match=r"none.zarr: no such store"):
        known_cells(newest(folder), str(tmp_path / "none.zarr"))


def test_a_store_that_has_grown_is_still_the_store_of_its_earlier_checkpoints(
    folder: Path, tmp_path: Path, atlas: Atlas
) -> None:
    """The old data sets are unchanged. Cells that were added later are not among those of the checkpoint."""
    more = write_cells(tmp_path / "more.h5ad", 30, 80, seed=5)
    store = folder / "store.zarr"
    make_store([more], None, store, add=True, splits=SplitOptions(by="none"), say=lambda line: None)
    grown = Manifest.load(store)
    keep_cell_hashes(folder / "run", store, grown)
    kept = folder / "run" / CELL_HASHES
    assert Manifest.load(kept) == grown
    known = known_cells(newest(folder))
    assert [one.entry.name for one in known.datasets] == ["first", "second"]
    assert places(known) == [kept, kept]
    assert (look_up(more, known).place < 0).all()
    assert (look_up(atlas.files[0], known).place >= 0).all()


def test_the_copy_is_made_once_and_a_failure_only_warns(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, store = Manifest.load(trained / "store.zarr"), tmp_path / "store.zarr"
    shutil.copytree(trained / "store.zarr", store)
    keep_cell_hashes(tmp_path, store, manifest)
    before = contents(tmp_path / CELL_HASHES)
    stamp = (tmp_path / CELL_HASHES / "zarr.json").stat().st_mtime_ns
    keep_cell_hashes(tmp_path, store, manifest)
    assert (tmp_path / CELL_HASHES / "zarr.json").stat().st_mtime_ns == stamp
    # Another manifest needs another copy, but a chunk of the store is damaged: the copy stays as it was.
    flip_byte(store / "first/cell_hash/c/0", 0)
    other = replace(manifest, options={"changed": True})
    keep_cell_hashes(tmp_path, store, other)
    assert "hashes of cells are not kept: `gm-train data lookup` will need the store" in caplog.text
    assert contents(tmp_path / CELL_HASHES) == before
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_an_earlier_version_needs_its_store(folder: Path) -> None:
    """It holds no manifest, only the hash of its store."""
    checkpoint = newest(folder)
    shutil.rmtree(checkpoint.path / STORE)
    shutil.rmtree(folder / "run" / CELL_HASHES)
    record_store(folder, str(folder / "gone.zarr"))
    with pytest.raises(DataError, match=r"kept no list of its data sets, and its store is not at .*gone.zarr: name"):
        known_cells(checkpoint)
    assert places(known_cells(checkpoint, str(folder / "store.zarr"))) == [folder / "store.zarr"] * 2


def test_the_command(folder: Path, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(folder / "run"), tmp_path / "found.csv"
    assert main(["data", "lookup", run, str(atlas.files[0]), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "is the one that data set first was made from" in printed
    assert "(100.0%)" in printed
    assert len(out.read_text().splitlines()) == 151
    assert main(["data", "lookup", run, str(atlas.files[0]), "--out", str(out)]) == 1
    assert "found.csv: exists already" in capsys.readouterr().err
    assert main(["data", "lookup", str(newest(folder).path), str(atlas.files[1])]) == 0
    assert main(["data", "lookup", str(atlas.store), str(atlas.files[1])]) == 0
    assert np.char.count(capsys.readouterr().out, "(100.0%)") == 2
    assert main(["data", "lookup", str(atlas.store), str(atlas.files[1]), "--store", "x.zarr"]) == 2
    assert "--store x.zarr: only for a checkpoint" in capsys.readouterr().err
    assert main(["data", "lookup", str(folder), str(atlas.files[1])]) == 1
    assert "neither a token store nor a checkpoint or run directory" in capsys.readouterr().err
    assert main(["data", "lookup", str(atlas.store.parent / "medians.zarr"), str(atlas.files[1])]) == 1
    assert "is a medians file" in capsys.readouterr().err

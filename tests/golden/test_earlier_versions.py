"""A store, medians and a run that version 0.1.0 wrote, before files moved into subfolders, are read and continued.

`earlier.tar.gz` holds what these commands of revision 27dd7ec made of small cells, and the metrics of the same run
without an interruption:

    gm-train data medians first.h5ad second.h5ad --out medians.zarr
    gm-train data shards first.h5ad second.h5ad --medians medians.zarr --out store.zarr --top-k 48 --split-by cell \
--validation 0.2 --keep-values
    gm-train fit data.store=store.zarr run.dir=run trainer.max_steps=6 …
"""

import json
import tarfile
from pathlib import Path

import pytest

from data_shards.store.manifest import Manifest
from gm_train.cli.main import main
from gm_train.run.records import METRICS, read_rows

ARCHIVE = Path(__file__).parent / "earlier.tar.gz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_the_store_is_whole_and_takes_another_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(folder / "store.zarr")
    assert main(["data", "verify", store]) == 0
    assert main(["data", "inspect", store]) == 0
    assert "first" in capsys.readouterr().out
    added = [
        "data",
        "shards",
        str(folder / "third.h5ad"),
        "--out",
        store,
        "--add",
        "--keep-values",
        "--split-by",
        "cell",
    ]
    assert main(added) == 0
    assert main(["data", "verify", store]) == 0
    assert [entry.name for entry in Manifest.load(folder / "store.zarr").datasets] == ["first", "second", "third"]


def test_cells_that_were_added_are_found_and_a_store_made_again_finds_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The earlier store has no hashes of cells: only its files can be compared."""
    store = folder / "store.zarr"
    words = ["--out", str(store), "--add", "--keep-values", "--split-by", "none"]
    assert main(["data", "lookup", str(store), str(folder / "first.h5ad")]) == 0
    printed = capsys.readouterr().out
    assert "is the one that data set first was made from" in printed
    assert "no hashes  of the cells of first, second: it was made by a version that kept no hashes of cells" in printed
    assert main(["data", "shards", str(folder / "third.h5ad"), *words]) == 0
    assert main(["data", "lookup", str(store), str(folder / "third.h5ad")]) == 0
    n = Manifest.load(store).datasets[-1].n_cells
    assert f"found      {n} of {n} (100.0%): {n} training" in capsys.readouterr().out
    assert main(["data", "lookup", str(store), str(folder / "first.h5ad")]) == 0
    assert "(0.0%): 0 training" in capsys.readouterr().out


def test_an_earlier_checkpoint_finds_the_cells_of_its_store_made_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint holds the hash of its store only; the store made again has the same hash, and hashes of cells."""
    run, again = str(folder / "run"), str(folder / "again.zarr")
    first, second = str(folder / "first.h5ad"), str(folder / "second.h5ad")
    config = folder / "run/config.yaml"
    config.write_text(config.read_text().replace("/tmp/gm-train-golden/store.zarr", str(folder / "gone.zarr")))
    assert main(["data", "lookup", run, first]) == 1
    assert "a version that kept no list of its data sets, and its store is not at" in capsys.readouterr().err
    assert main(["data", "lookup", run, first, "--store", str(folder / "store.zarr")]) == 0
    assert "cells      were not looked up: only files can be compared" in capsys.readouterr().out
    words = ["--top-k", "48", "--split-by", "cell", "--validation", "0.2", "--keep-values"]
    medians = str(folder / "medians.zarr")
    assert main(["data", "shards", first, second, "--medians", medians, "--out", again, *words]) == 0
    assert main(["data", "lookup", run, first, "--store", again]) == 0
    entry = Manifest.load(again).datasets[0]
    found = f"{entry.n_cells} of {entry.n_cells} (100.0%): {entry.n_train} training, {entry.n_validation} validation"
    assert found in capsys.readouterr().out


def test_the_same_files_make_the_same_store(folder: Path) -> None:
    files = [str(folder / name) for name in ("first.h5ad", "second.h5ad")]
    medians, store = str(folder / "medians.zarr"), folder / "again.zarr"
    words = ["--top-k", "48", "--split-by", "cell", "--validation", "0.2", "--keep-values"]
    assert main(["data", "shards", *files, "--medians", medians, "--out", str(store), *words]) == 0
    assert Manifest.load(store).hash == Manifest.load(folder / "store.zarr").hash


def test_the_medians_take_another_data_set(folder: Path) -> None:
    assert main(["data", "medians", str(folder / "third.h5ad"), "--out", str(folder / "medians.zarr"), "--add"]) == 0


def test_the_run_is_verified_continued_and_evaluated(folder: Path) -> None:
    run, store = folder / "run", folder / "store.zarr"
    assert main(["ckpt", "verify", str(run)]) == 0
    words = [f"run.dir={run}", f"data.store={store}", f"objective.pathways={folder / 'sets.gmt'}"]
    assert main(["fit", str(run / "config.yaml"), *words, "trainer.max_steps=12"]) == 0
    rows, undisturbed = read_rows(run / METRICS), read_rows(folder / "undisturbed.jsonl")
    exact = ("step", "position", "sample_hash", "lr")
    assert [[row.get(key) for key in exact] for row in rows] == [[row.get(key) for key in exact] for row in undisturbed]
    for key in ("loss", "l_lang", "l_pathway", "grad_norm", "val_loss"):
        ours, theirs = ([row[key] for row in some if key in row] for some in (rows, undisturbed))
        assert ours == pytest.approx(theirs, rel=1e-4), key
    assert main(["eval", str(run), str(folder / "first.h5ad"), str(folder / "second.h5ad"), "--tasks", "masked"]) == 0
    assert json.loads((run / "eval" / "eval.json").read_text())["masked"]

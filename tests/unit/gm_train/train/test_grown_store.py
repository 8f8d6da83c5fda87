"""A run goes on when `--add` has added data sets to its store, and only then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import Manifest
from gm_train.checkpoint.find import open_checkpoint
from gm_train.cli.main import main
from gm_train.config.load import config_from_file, load_config
from gm_train.run.records import METRICS, read_rows
from gm_train.train import fit as fit_module
from gm_train.train.fit import fit
from gm_train.train.grown_store import GrownStore
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.grown_stores import copied, grow
from tests.support.training_runs import history


def train(store: Path, run: Path, *words: str) -> None:
    fit(load_config(*tiny_words(store, run), *words))


def samples(run: Path) -> dict[int, str]:
    return {row["step"]: row["sample_hash"] for row in read_rows(run / METRICS) if "sample_hash" in row}


@pytest.fixture(scope="module")
def grown(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A store that has grown since six steps of a run, the run, and the hash that the store had."""
    folder = tmp_path_factory.mktemp("grown")
    store, run = copied(atlas, folder), folder / "run"
    train(store, run, "trainer.max_steps=6")
    before = Manifest.load(store).hash
    grow(store)
    return store, run, before


def test_a_store_knows_what_it_was_before_data_sets_were_added(atlas: Atlas, tmp_path: Path) -> None:
    store = copied(atlas, tmp_path)
    first = Manifest.load(store)
    assert first.before_adding(first.hash) is None
    grow(store, "third")
    second = Manifest.load(store)
    grow(store, "fourth", seed=4)
    third = Manifest.load(store)
    for earlier in (first, second):
        found = third.before_adding(earlier.hash)
        assert found is not None
        assert (found.hash, found.block_cells) == (earlier.hash, earlier.block_cells)
        assert found.datasets == earlier.datasets
    assert first.before_adding(second.hash) is None
    assert third.before_adding("0" * 64) is None


def test_the_run_goes_on_and_reads_the_grown_store_from_its_beginning(
    grown: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, half, before = grown
    run = Path(shutil.copytree(half, tmp_path / "run"))
    train(store, run, "trainer.max_steps=12")
    printed = capsys.readouterr().out
    assert "the store has grown by third (90 cells)" in printed
    assert "from step 6" in printed
    seen = read_rows(half / METRICS)[-1]["position"]
    per_pass = sum(entry.n_train for entry in Manifest.load(store).datasets[:2])
    assert f"about {seen % per_pass:,} of the {per_pass:,} cells of the unfinished pass" in printed
    # The learning rate goes on; the cells are those of a run that begins on the grown store.
    train(store, tmp_path / "fresh", "trainer.max_steps=6")
    assert [samples(run)[step + 6] for step in range(1, 7)] == [samples(tmp_path / "fresh")[s] for s in range(1, 7)]
    assert [row["lr"] for row in read_rows(run / METRICS) if "lr" in row][:6] == [
        row["lr"] for row in read_rows(half / METRICS) if "lr" in row
    ]
    checkpoint = open_checkpoint(run)
    position = json.loads((checkpoint.path / "position.json").read_text())
    assert position["store_hash"] == Manifest.load(store).hash
    assert position["earlier_stores"] == [{"hash": before, "until_step": 6, "cells": seen}]
    assert json.loads((checkpoint.path / "identity.json").read_text())["store"] == Manifest.load(store).hash
    # The next start is an ordinary one.
    train(store, run, "trainer.max_steps=14")
    assert "has grown" not in capsys.readouterr().out


def test_after_the_growth_a_stopped_run_resumes_bit_for_bit(grown: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Stopped before and after its first checkpoint on the grown store, and grown once more."""
    store, half, _ = grown
    store = Path(shutil.copytree(store, tmp_path / "growing.zarr"))
    whole, parts = (Path(shutil.copytree(half, tmp_path / name)) for name in ("whole", "parts"))
    train(store, whole, "trainer.max_steps=14")
    train(store, parts, "trainer.max_steps=10", "checkpoint.keep_last=9")
    # As after a kill: the newest checkpoint is of the store before it grew, and metrics.jsonl is longer.
    for step in (8, 10):
        shutil.rmtree(parts / "checkpoints" / f"step-{step:08d}")
    assert open_checkpoint(parts).step == 6
    train(store, parts, "trainer.max_steps=9")
    train(store, parts, "trainer.max_steps=14")
    assert history(parts) == history(whole)
    grow(store, "fourth", seed=4)
    train(store, whole, "trainer.max_steps=18")
    train(store, parts, "trainer.max_steps=16")
    train(store, parts, "trainer.max_steps=18")
    assert history(parts) == history(whole)
    position = json.loads((open_checkpoint(parts).path / "position.json").read_text())
    assert [store["until_step"] for store in position["earlier_stores"]] == [6, 14]
    (until,) = [row["position"] for row in read_rows(parts / METRICS) if row["step"] == 14 and "loss" in row]
    assert sum(store["cells"] for store in position["earlier_stores"]) == until


@pytest.mark.parametrize("workers", [0, 1])
def test_data_sets_that_are_added_while_a_run_trains_are_for_its_next_start(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The store grows after the run has opened it, and before its loader and its validation do."""
    store = copied(atlas, tmp_path)
    announce = fit_module.announce

    def announce_and_grow(*args: Any) -> None:
        announce(*args)
        grow(store)

    monkeypatch.setattr(fit_module, "announce", announce_and_grow)
    train(store, tmp_path / "run", f"data.workers={workers}", "trainer.max_steps=6")
    monkeypatch.undo()
    train(atlas.store, tmp_path / "undisturbed", "trainer.max_steps=6")
    assert history(tmp_path / "run") == history(tmp_path / "undisturbed")
    with pytest.raises(DataError, match="has been replaced by another store"):
        StoreReader(store, as_of="0" * 64)


def test_a_computed_pool_size_is_computed_again(grown: tuple[Path, Path, str], atlas: Atlas, tmp_path: Path) -> None:
    store, _, _ = grown
    before, now = Manifest.load(atlas.store), Manifest.load(store)
    growth = GrownStore(before, now)
    words = [word for word in tiny_words(store, tmp_path / "run") if not word.startswith("data.pool_blocks")]
    was = sum(before.n_blocks)  # a small store is one pool
    for given in (was, sum(now.n_blocks)):
        config = load_config(*words, f"data.pool_blocks={given}")
        saved = growth.carry_over(config, {"store": before.hash, "data.pool_blocks": was})
        assert config.data.pool_blocks == saved["data.pool_blocks"] == sum(now.n_blocks) != was
    config = load_config(*words, "data.pool_blocks=3")
    assert growth.carry_over(config, {"data.pool_blocks": 3})["data.pool_blocks"] == config.data.pool_blocks == 3
    run = tmp_path / "run"
    fit(load_config(*words, f"data.store={atlas.store}", "trainer.max_steps=4"))
    fit(load_config(*words, "trainer.max_steps=8"))
    fit(load_config(str(run / "config.yaml"), "trainer.max_steps=10"))
    fit(load_config(*words, "trainer.max_steps=12"))
    assert config_from_file(run / "config.yaml").data.pool_blocks == sum(now.n_blocks)


def test_another_store_or_setting_is_refused_with_the_way_out(
    grown: tuple[Path, Path, str], atlas: Atlas, tmp_path: Path
) -> None:
    store, half, _ = grown
    checkpoint = open_checkpoint(half).path
    way_out = f"model.init_from={checkpoint} run.dir="
    with pytest.raises(DataError, match=r"optim\.lr: 0\.003 in the checkpoint, 0\.1 now") as refused:
        train(store, half, "trainer.max_steps=12", "optim.lr=0.1")
    assert way_out in str(refused.value)
    # The same cells of the first data set, but another second one: nothing that was added.
    files = [atlas.files[0], write_cells(tmp_path / "second.h5ad", 41, 80, seed=9)]
    make_medians([atlas.files[0]], tmp_path / "m.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    other = tmp_path / "other.zarr"
    make_store(files, tmp_path / "m.zarr", other, top_k=48, splits=splits, say=lambda line: None)
    with pytest.raises(DataError, match=r"store: hash \w{12}… in the checkpoint, hash \w{12}… now") as refused:
        train(other, half, "trainer.max_steps=12")
    assert "neither that of the run nor what `gm-train data shards --add` makes of it" in str(refused.value)
    assert way_out in str(refused.value)


def test_a_run_on_the_grown_store_refuses_the_store_as_it_was(
    grown: tuple[Path, Path, str], atlas: Atlas, tmp_path: Path
) -> None:
    store, half, _ = grown
    run = Path(shutil.copytree(half, tmp_path / "run"))
    train(store, run, "trainer.max_steps=8")
    with pytest.raises(DataError, match="belongs to another run"):
        train(atlas.store, run, "trainer.max_steps=10")


def test_an_earlier_checkpoint_is_evaluated_on_the_grown_store(
    grown: tuple[Path, Path, str], atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, half, _ = grown
    files = [*map(str, atlas.files), str(store.parent / "third.h5ad")]
    words = ["--store", str(store), "--max-cells", "60", "--tasks", "masked", "--out", str(tmp_path)]
    assert main(["eval", str(half), *files, *words]) == 0
    assert "has grown since this checkpoint: the model has seen no cell of third" in capsys.readouterr().out

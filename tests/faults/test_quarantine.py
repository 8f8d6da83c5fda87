"""A run on a store with damaged chunks leaves out their cells and reports them; it stops if there are too many."""

import json
import shutil
from pathlib import Path

import pytest

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store import writer
from gm_train.run.records import METRICS, QUARANTINE, read_rows
from tests.conftest import tiny_words, write_cells
from tests.support.random_stores import flip_byte
from tests.support.training_runs import assert_close, history, train, train_ranks


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An undamaged store of several chunks, and a copy with two damaged chunks."""
    folder = tmp_path_factory.mktemp("stores")
    files = [write_cells(folder / "first.h5ad", 150, 80, seed=1), write_cells(folder / "second.h5ad", 41, 80, seed=2)]
    make_medians(files, folder / "medians.zarr", say=lambda line: None)
    with pytest.MonkeyPatch.context() as patch:
        # The last two entries are the numbers of elements in a chunk and in a shard.
        layout = {name: (*entry[:-2], 256, 1024) for name, entry in writer.LAYOUT.items()}
        patch.setattr(writer, "LAYOUT", layout)
        splits = SplitOptions(by="cell", validation=0.2)
        make_store(
            files, folder / "medians.zarr", folder / "whole.zarr", top_k=48, splits=splits, say=lambda line: None
        )
    shutil.copytree(folder / "whole.zarr", folder / "damaged.zarr")
    flip_byte(folder / "damaged.zarr" / "first" / "tokens" / "c" / "1", 2)
    flip_byte(folder / "damaged.zarr" / "second" / "tokens" / "c" / "0", 0)
    return folder / "whole.zarr", folder / "damaged.zarr"


def positions(run: Path) -> list[list[int]]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    lanes: list[list[int]] = json.loads((newest / "position.json").read_text())["lanes"]
    return lanes


@pytest.fixture(scope="module")
def damaged_run(stores: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on the damaged store, and its log."""
    folder = tmp_path_factory.mktemp("damaged")
    assert train(tiny_words(stores[1], folder / "run"), folder / "log") == 0, (folder / "log").read_text()
    return folder / "run", (folder / "log").read_text()


def test_a_run_skips_damaged_cells_and_reports_them(
    stores: tuple[Path, Path], damaged_run: tuple[Path, str], tmp_path: Path
) -> None:
    whole, (damaged, log) = tmp_path / "whole", damaged_run
    assert train(tiny_words(stores[0], whole), tmp_path / "log") == 0
    # Both runs read the same rows; on the damaged store some cells had no loss.
    assert positions(whole) == positions(damaged)
    rows, fewer = read_rows(whole / METRICS), read_rows(damaged / METRICS)
    counts = [(a["tokens"], b["tokens"]) for a, b in zip(rows, fewer, strict=True) if "loss" in a]
    assert all(a >= b for a, b in counts)
    assert any(a > b for a, b in counts)
    assert rows[-1]["position"] > fewer[-1]["position"]
    entries = read_rows(damaged / QUARANTINE)
    chunks = {(row["data_set"], row["shard"], row["chunk"]) for row in entries}
    assert chunks == {("first", "c/1", 2), ("second", "c/0", 0)}
    assert len(entries) == 2
    assert not (whole / QUARANTINE).exists()
    assert "first/tokens/c/1, chunk 2" in log


def test_a_resumed_run_skips_the_same(stores: tuple[Path, Path], damaged_run: tuple[Path, str], tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = tiny_words(stores[1], run)
    assert train([*words, "trainer.max_steps=6"], log) == 0
    with (run / QUARANTINE).open("a") as file:
        file.write('{"step": 6, "data_set": "fir')  # as a kill leaves it
    assert train([*words, "data.workers=2"], log) == 0, log.read_text()
    assert history(run) == history(damaged_run[0])
    assert len(read_rows(run / QUARANTINE)) == 2
    assert (run / QUARANTINE).read_text().endswith("}\n")


@pytest.mark.slow
def test_several_ranks_skip_the_same(stores: tuple[Path, Path], damaged_run: tuple[Path, str], tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    assert train_ranks(tiny_words(stores[1], run), 2, log) == [0, 0], log.read_text()
    assert_close(run, damaged_run[0])
    assert len(read_rows(run / QUARANTINE)) == 2


@pytest.mark.parametrize("budget", [0, 1])
def test_too_many_damaged_chunks_stop_the_run(stores: tuple[Path, Path], tmp_path: Path, budget: int) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*tiny_words(stores[1], run), f"data.max_damaged_chunks={budget}"]
    assert train(words, log) == 1
    assert "Traceback" not in log.read_text()
    assert ("no more than 1 damaged chunks" if budget else "/tokens: elements") in log.read_text()


def test_damage_found_before_a_resume_counts(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """Two damaged chunks are too many after a resume with a budget of one."""
    run, log = tmp_path / "run", tmp_path / "log"
    words = tiny_words(stores[1], run)
    assert train([*words, "trainer.max_steps=8"], log) == 0
    assert train([*words, "data.max_damaged_chunks=1"], log) == 1
    assert f"2 chunks of tokens are damaged, more than data.max_damaged_chunks=1; {run / QUARANTINE}" in log.read_text()

"""`gm-train embed` that is ended by a signal: nothing half-written stays, or the next start removes it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_shards.files import atomic
from gm_train.config.load import load_config
from gm_train.embedding import anndata_copy, embed_file, embedded_chunks, token_chunks
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.training_runs import CONTEXT


@pytest.fixture(scope="module")
def run_dir(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=4", "optim.warmup_steps=2"))
    return run


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cells(tmp_path_factory.mktemp("cells") / "cells.h5ad", 600, 80, seed=7)


def _embed(words: list[str], log: str, prepare: Callable[[], None]) -> None:
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        from gm_train.cli.main import main

        # The tests' process may ignore SIGINT, as under nohup, and its children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        code = main(["embed", *words])
        file.flush()
    os._exit(code)


def start(run_dir: Path, source: Path, out: Path, log: Path, prepare: Callable[[], None]) -> Any:
    process = CONTEXT.Process(target=_embed, args=([str(run_dir), str(source), str(out)], str(log), prepare))
    process.start()
    return process


def slow() -> None:
    """Take six seconds."""
    token_chunks.CHUNK_CELLS = 1
    real = embedded_chunks.embed_cells

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.01)
        return real(*arguments)

    embedded_chunks.embed_cells = slowly


def die_at(place: str, number: signal.Signals, times: int, call: int) -> None:
    """Send this process signals at the `call`-th call of a function of this place."""
    token_chunks.CHUNK_CELLS = 100
    home, name = {
        "copying": (anndata_copy.Progress, "update"),
        "embedding": (embedded_chunks, "embed_cells"),
        "writing": (anndata_copy.AddedArray, "write"),
        "at the end": (atomic, "flush"),
    }[place]
    real, calls = getattr(home, name), 0

    def signalled(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return real(*arguments)

    setattr(home, name, signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
def test_a_signal_leaves_nothing(run_dir: Path, cells: Path, tmp_path: Path, name: str, number: signal.Signals) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    process = start(run_dir, cells, folder / name, log, slow)
    while process.is_alive() and not list(folder.iterdir()):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 1, log.read_text()
    assert log.read_text().endswith("gm-train: interrupted\n")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "place", "number", "times", "call"),
    [
        ("out.h5ad", "copying", signal.SIGTERM, 1, 1),
        ("out.h5ad", "embedding", signal.SIGTERM, 2, 3),
        ("out.h5ad", "at the end", signal.SIGTERM, 1, 1),
        ("out.zarr", "copying", signal.SIGINT, 1, 5),
        ("out.zarr", "writing", signal.SIGTERM, 2, 2),
    ],
)
def test_a_signal_at_any_place(
    run_dir: Path, cells: Path, tmp_path: Path, name: str, place: str, number: signal.Signals, times: int, call: int
) -> None:
    """A second SIGTERM must not stop the removal."""
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    process = start(run_dir, cells, folder / name, log, partial(die_at, place, number, times, call))
    process.join()
    assert process.exitcode == 1, log.read_text()
    assert log.read_text().endswith("gm-train: interrupted\n")
    assert list(folder.iterdir()) == []


#: Copy a file and write vectors; get a signal in the middle of a call of HDF5.
COPY = """
import os, signal, sys
from pathlib import Path
import numpy as np
from data_shards.files.hdf5_output import Hdf5Output
from data_shards.workers import interrupts
from gm_train.embedding import anndata_copy

def signalled(output, values):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGTERM)
    return write(output, values)

calls, write, Hdf5Output.write = 0, Hdf5Output.write, signalled
anndata_copy._CHUNK = 1024  # many chunks, so that HDF5 writes often
try:
    with interrupts.noted(signal.SIGTERM), anndata_copy.copied(Path(sys.argv[1]), Path(sys.argv[2])) as copy:
        array = copy.add_array("obsm", "X", 600, 32)
        for first in range(0, 600, 100):
            array.write(first, np.ones((100, 32), np.float32))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("call", [1, 5, 12, 30])
def test_a_signal_while_hdf5_writes(cells: Path, tmp_path: Path, call: int) -> None:
    """HDF5 cannot take an exception there: it crashes, often only later."""
    (tmp_path / "out").mkdir()
    words = [sys.executable, "-c", COPY, str(cells), str(tmp_path / "out" / "out.h5ad"), str(call)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
def test_what_a_killed_start_leaves_is_removed_by_the_next(
    run_dir: Path, cells: Path, tmp_path: Path, name: str
) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    process = start(run_dir, cells, folder / name, log, partial(die_at, "writing", signal.SIGKILL, 1, 3))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name.startswith(f".{name}.partial-") for path in folder.iterdir()] == [True]
    embed_file.embed_file(run_dir, cells, folder / name, say=lambda line: None)
    assert [path.name for path in folder.iterdir()] == [name]

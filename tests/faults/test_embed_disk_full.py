"""A disk that fills up while cells are embedded: one line of error, and nothing half-written."""

import contextlib
import os
import resource
from pathlib import Path

import anndata as ad
import pytest

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from gm_train.config.load import load_config
from gm_train.embedding import anndata_copy, embedded_chunks
from gm_train.embedding.embed_cells import embed_cells
from gm_train.embedding.embed_file import embed_file
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_cells
from tests.support.disks import resize, small_disk
from tests.support.training_runs import CONTEXT

#: Kilobytes that the vectors of 600 cells need at least.
VECTORS_KB = 600 * 32 * 4 // 1024


def quiet(line: str) -> None:
    """Drop a line of the report."""


@pytest.fixture(scope="module")
def run_dir(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    fit(load_config(*tiny_words(atlas.store, run), "trainer.max_steps=4", "optim.warmup_steps=2"))
    return run


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cells(tmp_path_factory.mktemp("cells") / "cells.h5ad", 600, 80, seed=7)


def _embed(words: list[str], log: str, file_limit: int) -> None:
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        from gm_train.cli.main import main

        code = main(["embed", *words])
        file.flush()
    os._exit(code)


def used_kb(folder: Path) -> int:
    """Kilobytes of the files in a folder, in whole pages of memory."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["out.h5ad", "out.zarr"])
@pytest.mark.parametrize("given", ["in.h5ad", "in.zarr"])
@pytest.mark.parametrize("full", ["while copying", "while embedding"])
def test_a_full_disk(
    run_dir: Path, cells: Path, tmp_path: Path, given: str, name: str, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same format, and from one to the other."""
    monkeypatch.setattr(anndata_copy, "_CHUNK", 4096)  # the vectors are many chunks
    source = cells
    if given == "in.zarr":
        source = tmp_path / given
        ad.read_h5ad(cells).write_zarr(source)
    before = hash_path(source)
    whole = tmp_path / name
    embed_file(run_dir, source, whole, say=quiet)
    size_kb = used_kb(whole) if whole.is_dir() else whole.stat().st_size // 1024
    too_small = (size_kb - VECTORS_KB) // 4 if full == "while copying" else size_kb - VECTORS_KB // 2
    reached: list[int] = []
    monkeypatch.setattr(embedded_chunks, "embed_cells", lambda *given: reached.append(1) or embed_cells(*given))
    with small_disk(tmp_path / "disk", too_small) as disk:
        with pytest.raises(DataError, match=rf"{name}: cannot be written \(.*No space left on device"):
            embed_file(run_dir, source, disk / name, say=quiet)
        assert len(reached) == (full == "while embedding")
        assert list(disk.iterdir()) == []
        resize(disk, 4 * size_kb + 16 * VECTORS_KB)
        embed_file(run_dir, source, disk / name, say=quiet)
        assert [path.name for path in disk.iterdir()] == [name]
    assert hash_path(source) == before


@pytest.mark.parametrize("share", [0.5, 1.2])
def test_a_file_that_may_not_grow(run_dir: Path, cells: Path, tmp_path: Path, share: float) -> None:
    """A quota: the process must end by itself and not in HDF5, which crashes on arrays that it cannot write."""
    (tmp_path / "out").mkdir()
    words, log = [str(run_dir), str(cells), str(tmp_path / "out" / "x.h5ad")], tmp_path / "log"
    process = CONTEXT.Process(target=_embed, args=(words, str(log), int(share * cells.stat().st_size)))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert "x.h5ad: cannot be written ([Errno 27] File too large)" in log.read_text()
    assert list((tmp_path / "out").iterdir()) == []

"""Bad input for shards, and disks that cannot be written: one line of error, and nothing half-written."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest
import scipy.sparse as sp

from data_shards.counts import csc_by_cell
from data_shards.counts.filters import CellFilter
from data_shards.errors import DataError
from data_shards.files import fingerprint
from data_shards.files.fingerprint import Fingerprint
from data_shards.inspect.verify import find_damage
from data_shards.medians import medians_file
from data_shards.medians.make_medians import make_medians
from data_shards.medians.medians_file import Medians
from data_shards.prepare import rank_datasets, rank_range
from data_shards.prepare.make_store import make_store
from data_shards.store.manifest import Manifest
from tests.support.count_files import draw_counts, write_counts
from tests.support.counts_to_stores import build, contents, quiet, two_data_sets
from tests.support.data_runs import run_data
from tests.support.disks import resize, small_disk
from tests.support.shard_runs import set_up

HUMAN = [f"ENSG{i:011d}" for i in range(20)]
MOUSE = [f"ENSMUSG{i:011d}" for i in range(20)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = two_data_sets(tmp_path)
    make_medians(files, tmp_path / "m.zarr", say=quiet)
    return files


def refused(folder: Path, files: list[Path], message: str, **options: object) -> None:
    """Check that a store of these files is refused with the message, and that nothing is left behind."""
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "x.zarr"}
    with pytest.raises(DataError, match=message):
        build(folder, files, "x.zarr", **options)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_file_that_changed_since_its_medians(tmp_path: Path, files: list[Path]) -> None:
    write_counts(files[0], draw_counts(60, 20, 5))
    refused(tmp_path, files, r"one\.h5ad: is not the file that the medians were made from \(SHA-256 .*make the medians")


def test_a_data_set_that_is_not_in_the_medians_is_reported(tmp_path: Path, files: list[Path]) -> None:
    other = write_counts(tmp_path / "other.h5ad", draw_counts(30, 20, 5))
    lines: list[str] = []
    build(tmp_path, [files[0], other], say=lines.append)
    assert [line for line in lines if "not among the data sets of the medians" in line] == [
        "other: is not among the data sets of the medians: it is ranked with medians of other data sets"
    ]


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Its parts are deleted: parts from before and after the change must not end up in one store."""
    path = write_counts(tmp_path / f"a.{suffix}", draw_counts(60, 20), obs={"donor_id": ["x", "y"] * 30})
    make_medians([path], tmp_path / "m.zarr", say=quiet)
    real, changed = rank_range._rank, False

    def changing(*arguments: object) -> rank_range.RangeSummary:
        nonlocal changed
        summary = real(*arguments)  # type: ignore[arg-type]
        if not changed:
            changed = True
            if path.is_dir():
                (path / "X" / "more").write_text("")
            else:
                with path.open("ab") as file:
                    file.write(b"\0")
        return summary

    monkeypatch.setattr(rank_range, "_rank", changing)
    with pytest.raises(DataError, match=rf"a\.{suffix}: changed while it was read: wait until"):
        build(tmp_path, [path], "x.zarr")
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted([path.name, "m.zarr"])


@pytest.mark.parametrize("by_gene", [False, True])
def test_a_file_that_changed_and_came_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_gene: bool) -> None:
    """No part and no copy by cell of the other content is used again."""
    monkeypatch.setattr(rank_datasets, "PART_CELLS", 16)
    counts = [draw_counts(60, 20, seed) for seed in (1, 2)]
    path, other = (
        write_counts(tmp_path / f"{name}.h5ad", matrix.tocsc() if by_gene else matrix)
        for name, matrix in zip("ab", counts, strict=True)
    )
    build(tmp_path, [path])
    content = path.read_bytes()
    calls = 0

    def changing(real: Callable[..., Any], at: int) -> Callable[..., Any]:
        def change(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                path.write_bytes(other.read_bytes())
            return real(*arguments)

        return change

    with monkeypatch.context() as patched:
        if by_gene:
            patched.setattr("data_shards.counts.count_file.copy_by_cell", changing(csc_by_cell.copy_by_cell, 1))
            # Stop after the copy: a start that is killed there leaves it behind.
            patched.setattr(rank_datasets, "rank_range", None)
        else:
            patched.setattr(rank_range, "_rank", changing(rank_range._rank, 2))
        with pytest.raises(DataError, match=r"a\.h5ad: changed while it was read"):
            build(tmp_path, [path], "x.zarr")
    assert calls == (1 if by_gene else 2)
    path.write_bytes(content)
    build(tmp_path, [path], "x.zarr")
    assert contents(tmp_path / "x.zarr") == contents(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("first", "second"),
    [({"top_k": 4}, {"top_k": 8}), ({}, {"keep_values": True}), ({}, {"cells": CellFilter(min_genes=3)})],
)
def test_a_task_that_outlives_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """A worker that seemed dead finishes a part with other options while the next start is running."""
    path = write_counts(tmp_path / "a.h5ad", draw_counts(60, 20))
    build(tmp_path, [path], **second)
    late: list[tuple[Any, ...]] = []

    def die(*task: Any) -> None:
        late.append(task)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rank_datasets, "rank_range", die)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, [path], "x.zarr", **first)

    def after_it(*task: Any) -> rank_range.RangeSummary:
        rank_range.rank_range(*late[0])
        return rank_range.rank_range(*task)

    monkeypatch.setattr(rank_datasets, "rank_range", after_it)
    build(tmp_path, [path], "x.zarr", **second)
    assert contents(tmp_path / "x.zarr") == contents(tmp_path / "s.zarr")
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_changes_before_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise its genes and cells would be recorded with the hash of another content."""
    path, other = (write_counts(tmp_path / f"{n}.h5ad", draw_counts(60, 20, s)) for s, n in enumerate("ab"))
    content = path.read_bytes()

    class Late(Fingerprint):
        @classmethod
        def of(cls, path: Path) -> Fingerprint:
            path.write_bytes(other.read_bytes())
            return Fingerprint.of(path)

    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "Fingerprint", Late)
        with pytest.raises(DataError, match=r"a\.h5ad: changed while it was read"):
            make_medians([path], tmp_path / "m.zarr", say=quiet)
    make_medians([other], tmp_path / "m.zarr", say=quiet)
    path.write_bytes(content)
    monkeypatch.setattr(fingerprint, "Fingerprint", Late)
    with pytest.raises(DataError, match=r"a\.h5ad: changed while it was read"):
        build(tmp_path, [path], "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


def test_two_files_of_one_name(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "again").mkdir()
    again = Path(shutil.copy(files[0], tmp_path / "again"))
    refused(tmp_path, [*files, again], r"two data sets are named 'one' after their files: rename one of the files")


def test_another_species(tmp_path: Path) -> None:
    human = write_counts(tmp_path / "human.h5ad", draw_counts(10, 20), HUMAN)
    make_medians([human], tmp_path / "m.zarr", say=quiet)
    for name, genes in (("mouse", MOUSE), ("mostly", [*HUMAN[:4], *MOUSE[4:]])):
        path = write_counts(tmp_path / f"{name}.h5ad", draw_counts(10, 20), genes)
        message = rf"different species .*{name}\.h5ad: mouse \(ENSMUSG…\), the vocabulary: human \(ENSG…\)"
        refused(tmp_path, [human, path], message)
    fish = write_counts(tmp_path / "fish.h5ad", draw_counts(10, 20), [f"ENSXYZG{i:011d}" for i in range(20)])
    refused(tmp_path, [fish], r"fish\.h5ad: another species \(ENSXYZG…\), the vocabulary: human")


def test_too_many_tokens_or_genes(tmp_path: Path, files: list[Path]) -> None:
    refused(tmp_path, files, r"--top-k 65,536: .* at most 65,535", top_k=65_536)
    build(tmp_path, files, top_k=65_535)
    folder = tmp_path / "many"
    folder.mkdir()
    many = write_counts(folder / "a.h5ad", sp.csr_matrix([[1.0] * 65_535]), [f"g{i:05d}" for i in range(65_535)])
    make_medians([many], folder / "m.zarr", exact=True, say=quiet)
    refused(folder, [many], r"65,535 genes do not fit uint16 tokens \(at most 65,534\): choose genes with --genes")
    deny = tmp_path / "deny.txt"
    deny.write_text("g00007\n")
    assert build(folder, [many], deny_file=deny, top_k=65_535).n_tokens == 65_534


def test_a_truncated_file(tmp_path: Path, files: list[Path]) -> None:
    whole = files[1].read_bytes()
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, [files[0], cut], r"cut\.h5ad: not an AnnData file, or a truncated one")


def test_a_file_that_is_cut_short_inside(tmp_path: Path, files: list[Path]) -> None:
    """A valid HDF5 file whose matrix ends too early. This is found when its cells are read; other parts are kept."""
    with h5py.File(files[1], "r+") as file:
        for name in ("data", "indices"):
            values = file["X"][name][:-9]
            del file["X"][name]
            file["X"].create_dataset(name, data=values)
    make_medians(files[:1], tmp_path / "n.zarr", say=quiet)
    lines: list[str] = []
    with pytest.raises(DataError, match=r"two\.h5ad: the counts of cells 0 to 20 are cut short"):
        make_store(files, tmp_path / "n.zarr", tmp_path / "x.zarr", say=lines.append)
    assert any("keeps the finished parts: the same command continues from there" in line for line in lines)
    make_store(files[:1], tmp_path / "n.zarr", tmp_path / "x.zarr", say=lines.append)
    assert (
        lines.count("one: 60 cells kept, 0 filtered, 0 without a token left out; " + lines[-3].split("; ", 1)[1]) == 2
    )


def test_medians_of_another_kind(tmp_path: Path, files: list[Path]) -> None:
    human = write_counts(tmp_path / "human.h5ad", draw_counts(10, 20), HUMAN)
    refused(tmp_path, [human], r"human\.h5ad: none of its 20 genes .* is in the vocabulary \(as-is ids: g0000")
    make_medians([human], tmp_path / "h.zarr", say=quiet)
    with pytest.raises(DataError, match=r"one\.h5ad: only 0 of 20 genes \(0\.0%\) have an Ensembl id"):
        make_store(files, tmp_path / "h.zarr", tmp_path / "x.zarr", say=quiet)
    build(tmp_path, files)
    for other in (tmp_path / "s.zarr", files[0]):
        with pytest.raises(DataError, match=r"not a medians file"):
            make_store(files, other, tmp_path / "x.zarr", say=quiet)
    assert not (tmp_path / "x.zarr").exists()


def test_stores_of_other_versions(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, files[:1])
    for change, fix in ((-1, "update gm-train"), (1, "make it again with `gm-train data medians`")):
        schema = medians_file.SCHEMA + change
        message = rf"m\.zarr: layout version {medians_file.SCHEMA}, this program reads {schema}: {fix}"
        with monkeypatch.context() as patch:
            patch.setattr(medians_file, "SCHEMA", schema)
            with pytest.raises(DataError, match=message):
                Medians.load(tmp_path / "m.zarr")
    before = contents(tmp_path / "s.zarr")
    for schema, fix in ((2, "update gm-train"), (4, "make it again with `gm-train data shards`")):
        monkeypatch.setattr("data_shards.store.manifest.SCHEMA", schema)
        for use in (lambda: Manifest.load(tmp_path / "s.zarr"), lambda: build(tmp_path, files[1:], add=True)):
            with pytest.raises(DataError, match=f"layout version 3, this program reads {schema}: {fix}"):
                use()
    assert contents(tmp_path / "s.zarr") == before


@pytest.mark.parametrize("step", ["parts", "arrays", "add"])
def test_a_full_disk(tmp_path: Path, step: str) -> None:
    """The disk fills up while parts or the store are written; with more room, the next start continues."""
    path = write_counts(tmp_path / "a.h5ad", draw_counts(3000, 200), obs={"donor_id": ["x", "y"] * 1500})
    one = write_counts(tmp_path / "one.h5ad", draw_counts(50, 200, 1))
    make_medians([path, one], tmp_path / "m.zarr", say=quiet)
    log = tmp_path / "log"
    parts_of = partial(set_up, part_cells=512)
    with small_disk(tmp_path / "disk", 4096) as disk:
        out = disk / "s.zarr"
        words: list[str | Path] = ["shards", path, "--medians", tmp_path / "m.zarr", "--out", out]
        if step == "add":
            assert run_data(["shards", one, "--medians", tmp_path / "m.zarr", "--out", out], log) == 0
            words.append("--add")
        before = contents(out) if step == "add" else {}
        resize(disk, 300 if step == "parts" else 750)
        assert run_data(words, log, parts_of) == 1
        errors = log.read_text()
        assert "cannot be written" in errors
        assert "make room" in errors
        assert "Traceback" not in errors
        kept = list(disk.glob(".s.zarr.work/datasets/a/parts-*/*"))
        assert len(kept) == 6 if step != "parts" else 0 < len(kept) < 6
        assert (contents(out) if out.exists() else {}) == before
        resize(disk, 4096)
        assert run_data(words, log, parts_of) == 0
        assert "continuing with the parts that an earlier start finished" in log.read_text()
        assert find_damage(out) == []
        assert [path.name for path in disk.iterdir()] == ["s.zarr"]


def test_no_write_permission(tmp_path: Path, files: list[Path]) -> None:
    read_only = tmp_path / "theirs"
    read_only.mkdir()
    read_only.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder == tmp_path or folder.name.startswith(("pytest-", "popen-")):  # pytest's own
            folder.chmod(0o755)
    user = 65_534 if os.geteuid() == 0 else None
    words: list[str | Path] = [*files, "--medians", tmp_path / "m.zarr", "--out", read_only / "s.zarr"]
    log = tmp_path / "log"
    log.touch()
    log.chmod(0o666)
    assert run_data(["shards", *words], log, partial(set_up, user=user)) == 1
    errors = log.read_text()
    assert "theirs/.s.zarr.work: cannot be created" in errors
    assert "choose an --out that can be written to" in errors
    assert "Traceback" not in errors
    assert list(read_only.iterdir()) == []

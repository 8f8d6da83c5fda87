"""Medians that are killed, whose workers are killed, or whose disk is full: no work is lost, the bytes are equal."""

import multiprocessing
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.medians import (
    exact_medians,
    medians_source,
    tdigest_parts,
    tdigest_tree,
)
from data_shards.medians.make_medians import make_medians
from data_shards.medians.tdigest import Digests, Partition
from tests.support.count_files import draw_counts, write_counts
from tests.support.dask_cluster import dask_cluster
from tests.support.data_runs import content, die_at_rename, run_data
from tests.support.disks import resize, small_disk

N_PARTITIONS = 11


def quiet(line: str) -> None:
    pass


def small_partitions() -> None:
    """Make partitions small, so that there are three levels of merging, in files of several pieces."""
    medians_source.PARTITION_CELLS = 16
    tdigest_tree.FAN_IN = 2
    tdigest_parts._CENTROIDS = 400


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medians_source, "PARTITION_CELLS", 16)
    monkeypatch.setattr(tdigest_tree, "FAN_IN", 2)
    monkeypatch.setattr(tdigest_parts, "_CENTROIDS", 400)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """11 partitions in two data sets, one stored by gene."""
    one, two = draw_counts(16 * 8 + 1, 30, seed=1), draw_counts(25, 30, seed=2)
    return [write_counts(tmp_path / "a.h5ad", one), write_counts(tmp_path / "b.h5ad", two.tocsc())]


def _logged(log: Path, before: bool) -> None:
    """Small partitions; log each one that is digested to a file, and die at the fourth rename."""
    small_partitions()
    digest = tdigest_parts.digest_partition

    def logged(partition: Partition) -> Digests:
        with log.open("a") as file:
            file.write(f"{partition.source.path.stem} {partition.start}\n")
        return digest(partition)

    tdigest_parts.digest_partition = logged
    die_at_rename(4, before)


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_part_continues_from_there(tmp_path: Path, files: list[Path], before: bool) -> None:
    """Each start dies four outputs later. What was finished is never made again, and the bytes are the same."""
    out, log, digested = tmp_path / "m.zarr", tmp_path / "log", tmp_path / "digested"
    whole = tmp_path / "whole.zarr"
    assert run_data(["medians", *files, "--out", whole], log, small_partitions) == 0
    deaths = 0
    while not out.exists():
        assert deaths < 40, log.read_text()
        code = run_data(["medians", *files[::-1], "--out", out], log, partial(_logged, digested, before))
        deaths += code == -signal.SIGKILL
    assert deaths > 4
    assert content(out) == content(whole)
    times = Counter(digested.read_text().splitlines())
    assert len(times) == N_PARTITIONS
    if before:  # the output that was not yet renamed is made again
        assert sum(times.values()) <= N_PARTITIONS + deaths
    else:
        assert set(times.values()) == {1}


def test_exact_medians_that_are_killed_continue(tmp_path: Path, files: list[Path]) -> None:
    out, log, deaths = tmp_path / "m.zarr", tmp_path / "log", 0
    assert run_data(["medians", *files, "--out", tmp_path / "whole.zarr", "--exact"], log, _small_groups) == 0
    while not out.exists():
        assert deaths < 40, log.read_text()
        code = run_data(["medians", *files[::-1], "--out", out, "--exact"], log, _small_groups_and_death)
        deaths += code == -signal.SIGKILL
    assert deaths > 2
    assert content(out) == content(tmp_path / "whole.zarr")


def _small_groups() -> None:
    small_partitions()
    exact_medians._TOGETHER = 3


def _small_groups_and_death() -> None:
    _small_groups()
    die_at_rename(4, before=False)


def test_killed_with_workers_continues(tmp_path: Path, files: list[Path], small: None) -> None:
    """Workers of a killed start do not disturb the next start."""
    expected = make_medians(files, tmp_path / "whole.zarr", say=quiet)
    out = tmp_path / "m.zarr"
    process = multiprocessing.get_context("spawn").Process(target=_with_workers, args=(files, out))
    process.start()
    _when_there(tmp_path / ".m.zarr.work", 3, process.kill)
    process.join()
    assert not out.exists()
    assert make_medians(files, out, workers=2, say=quiet).hash == expected.hash
    assert content(out) == content(tmp_path / "whole.zarr")


def _with_workers(files: list[Path], out: Path) -> None:
    small_partitions()
    make_medians(files, out, workers=2, say=quiet)


def test_a_killed_worker_is_reported_and_the_command_continues(tmp_path: Path, files: list[Path], small: None) -> None:
    make_medians(files, tmp_path / "whole.zarr", say=quiet)
    out, lines = tmp_path / "m.zarr", []
    killer = threading.Thread(
        target=_when_there,
        args=(tmp_path / ".m.zarr.work", 3, lambda: multiprocessing.active_children()[0].kill()),
    )
    killer.start()
    with pytest.raises(DataError, match="a worker process was killed"):
        make_medians(files, out, workers=2, say=lines.append)
    killer.join()
    assert not out.exists()
    assert "the same command continues from there" in lines[-1]
    make_medians(files, out, workers=2, say=lines.append)
    assert content(out) == content(tmp_path / "whole.zarr")


def test_dask_with_a_worker_killed_half_way_gives_the_same_bytes(
    tmp_path: Path, files: list[Path], small: None
) -> None:
    make_medians(files, tmp_path / "whole.zarr", say=quiet)
    out = tmp_path / "m.zarr"
    with dask_cluster(2) as cluster:
        killer = threading.Thread(target=_when_there, args=(tmp_path / ".m.zarr.work", 3, cluster.workers[0].kill))
        killer.start()
        make_medians(files, out, dask=cluster.address, say=quiet)
        killer.join()
        assert cluster.workers[0].wait() != 0
    assert content(out) == content(tmp_path / "whole.zarr")


def test_a_late_task_of_another_start_changes_nothing(
    tmp_path: Path, files: list[Path], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the task of a worker on another node, which still runs when the next start is running."""
    tasks: list[tdigest_parts.DigestTask] = []

    def stop(task: tdigest_parts.DigestTask) -> None:
        tasks.append(task)
        raise DataError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(tdigest_tree, "make_digests", stop)
        with pytest.raises(DataError, match="stopped"):
            make_medians([files[0]], tmp_path / "m.zarr", say=quiet)

    def after_the_late_one(task: tdigest_parts.DigestTask) -> None:
        if late := tasks[:1]:
            tasks.clear()
            with pytest.raises(DataError, match="cannot be written"):
                tdigest_parts.make_digests(late[0])
        tdigest_parts.make_digests(task)

    # The late task has other gene numbers for the same file, as from another gene table.
    other = tasks[0].partition.numbers[::-1].copy()
    tasks[0] = replace(tasks[0], partition=replace(tasks[0].partition, numbers=other))
    with monkeypatch.context() as patch:
        patch.setattr(tdigest_tree, "make_digests", after_the_late_one)
        make_medians(files, tmp_path / "m.zarr", say=quiet)
    assert not tasks
    make_medians(files, tmp_path / "whole.zarr", say=quiet)
    assert content(tmp_path / "m.zarr") == content(tmp_path / "whole.zarr")


def _when_there(work: Path, n_parts: int, act: Callable[[], None]) -> None:
    """Call `act` when some parts of the first data set are finished, but its digests are not."""
    deadline = time.monotonic() + 300
    while len(list(work.glob("*/a/[0-9]-*"))) < n_parts:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    act()
    assert not list(work.glob("*/a/digests"))


@pytest.mark.parametrize(
    ("workers", "size_kb", "message"),
    [
        (1, 40, r"/a/\S+: cannot be written .*No space left on device.*make room"),
        (2, 64, r"cannot be written .*No space left on device"),
        (1, 128, r"m\.zarr\S*: cannot be written .*No space left on device"),
    ],
)
def test_a_full_disk_loses_nothing(
    tmp_path: Path, files: list[Path], small: None, workers: int, size_kb: int, message: str
) -> None:
    """Full at a part or at the result: nothing is half-written, and with more room the same command continues."""
    make_medians(files, tmp_path / "whole.zarr", say=quiet)
    with small_disk(tmp_path / "disk", size_kb) as disk:
        out, lines = disk / "m.zarr", []
        with pytest.raises(DataError, match=message):
            make_medians(files, out, workers=workers, say=quiet)
        assert not out.exists()
        assert list(disk.glob(".m.zarr.work/*/a/*"))
        assert not [path for path in disk.rglob("*") if len(path.name) > 32]
        resize(disk, 4_000)
        make_medians(files, out, workers=workers, say=lines.append)
        assert any("continuing with the parts that an earlier start finished" in line for line in lines)
        assert content(out) == content(tmp_path / "whole.zarr")


def test_a_disk_that_cannot_be_written_to_is_named(tmp_path: Path, files: list[Path]) -> None:
    with small_disk(tmp_path / "disk", 80) as disk:
        resize(disk, 0)
        log = tmp_path / "log"
        assert run_data(["medians", *files, "--out", disk / "m.zarr"], log) == 1
    assert "Read-only file system" in log.read_text()
    assert "choose an --out that can be written to" in log.read_text()
    assert "Traceback" not in log.read_text()

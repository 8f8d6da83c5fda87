"""A preparation of shards that is killed, or whose workers are killed, continues and makes the same bytes."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_shards.inspect.verify import find_damage
from data_shards.medians.make_medians import make_medians
from data_shards.prepare import rank_datasets
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from tests.conftest import write_cells
from tests.support.counts_to_stores import contents, quiet
from tests.support.dask_cluster import dask_cluster
from tests.support.data_runs import run_data, start_data
from tests.support.shard_runs import set_up


def prepare(words: list[str | Path], log: Path, **how: Any) -> int:
    """Run `gm-train data shards` with `set_up(**how)` before it, and return its exit code."""
    return run_data(["shards", *words], log, partial(set_up, **how))


class Preparation:
    """Three files, their medians, and the store that an undisturbed `gm-train data shards` makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.medians = folder / "m.zarr"
        sizes = {"a": 70, "b": 40, "c": 33}
        self.files = [write_cells(folder / f"{name}.h5ad", n, 40, seed=n) for name, n in sizes.items()]
        make_medians(self.files, self.medians, say=quiet)
        self.whole = folder / "whole.zarr"
        assert prepare(self.words(self.whole), folder / "log", count=folder / "steps") == 0
        self.steps = int((folder / "steps").read_text())
        self.expected = contents(self.whole)
        assert "a/cell_hash/c/0" in self.expected  # so hashes of cells survive kills and do not depend on workers

    def words(self, out: Path, *more: str) -> list[str | Path]:
        return [*self.files, "--medians", self.medians, "--out", out, "--keep-values", "--test", "0.2", *more]

    def added(self, out: Path) -> list[str | Path]:
        return [self.files[2], "--out", out, "--add", "--test", "0.2"]


@pytest.fixture(scope="module")
def preparation(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    return Preparation(tmp_path_factory.mktemp("preparation"))


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()


def test_promise_05_kills_at_any_step_leave_no_store_and_the_same_bytes_in_the_end(
    preparation: Preparation, tmp_path: Path
) -> None:
    """Each start is killed after a random number of operations on the disk, until one succeeds."""
    assert preparation.steps > 60
    rng = random.Random(0)
    killed = 0
    for trial in range(3):
        out = tmp_path / f"{trial}.zarr"
        while True:
            code = prepare(preparation.words(out), tmp_path / "log", die_at=rng.randrange(1, preparation.steps // 2))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
            if out.exists():  # killed while the work folder was being removed
                break
        assert contents(out) == preparation.expected
    assert killed >= 6


def test_promise_05_the_last_steps_leave_a_whole_store_or_none(preparation: Preparation, tmp_path: Path) -> None:
    """Kills while the parts are moved into the store and the store gets its name."""
    last = range(preparation.steps - 60, preparation.steps + 1, 6)
    seen = set()
    for die_at in last:
        out = tmp_path / f"{die_at}.zarr"
        assert prepare(preparation.words(out), tmp_path / "log", die_at=die_at) == -signal.SIGKILL
        seen.add(out.exists())
        if not out.exists():
            work = tmp_path / f".{die_at}.zarr.work"
            (stamp,) = (path.stat().st_mtime_ns for path in work.rglob("a/tokens/c/0"))
            assert prepare(preparation.words(out), tmp_path / "log") == 0
            assert (out / "a/tokens/c/0").stat().st_mtime_ns == stamp  # moved back, not made again
        assert contents(out) == preparation.expected
    assert seen == {True, False}


def test_finished_parts_and_data_sets_are_not_redone(
    preparation: Preparation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start is killed after some parts of the second file: the next one makes neither these nor the first again."""
    monkeypatch.setattr(rank_datasets, "PART_CELLS", 16)
    out = tmp_path / "s.zarr"
    work = tmp_path / ".s.zarr.work" / "datasets"
    done: set[str] = set()
    for die_at in range(20, preparation.steps, 3):
        assert prepare(preparation.words(out), tmp_path / "log", die_at=die_at) == -signal.SIGKILL
        done = {f"{path.parent.parent.name}/{path.name}" for path in work.glob("*/parts-*/[!.]*")}
        if (work / "a" / "finished" / "written.json").exists() and "b/000000000016" in done:
            break
    assert not list(work.glob("a/parts-*"))
    stamps = {path: path.stat().st_mtime_ns for path in work.glob("b/parts-*/[!.]*/tokens")}
    read: list[str] = []
    real = rank_datasets.rank_range

    def watched(plan: rank_datasets.RankPlan, task: rank_datasets.Range) -> rank_datasets.RangeSummary:
        name = f"{task.source.path.stem}/{task.folder.name}"
        if not task.folder.exists():
            read.append(name)
        else:
            tokens = task.folder / "tokens"
            assert stamps[tokens] == tokens.stat().st_mtime_ns
        return real(plan, task)

    monkeypatch.setattr(rank_datasets, "rank_range", watched)
    lines: list[str] = []
    splits = Manifest.load(preparation.whole).datasets[0].splits
    make_store(
        preparation.files, preparation.medians, out, keep_values=True, splits=SplitOptions(**splits), say=lines.append
    )
    assert any("continuing with the parts that an earlier start finished" in line for line in lines)
    assert not any(name.startswith("a/") for name in read)
    assert not done & set(read)
    assert contents(out) == preparation.expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "s.zarr"]


def test_parts_of_a_file_that_changed_since_are_not_used(preparation: Preparation, tmp_path: Path) -> None:
    files = [preparation.files[0], write_cells(tmp_path / "x.h5ad", 60, 40, seed=1)]
    make_medians(files[:1], tmp_path / "m.zarr", say=quiet)
    log = tmp_path / "log"

    def words(name: str) -> list[str | Path]:
        return [*files, "--medians", tmp_path / "m.zarr", "--out", tmp_path / name]

    die_at = 20
    while not list(tmp_path.glob(".s.zarr.work/datasets/x/parts-*/[!.]*")):
        assert prepare(words("s.zarr"), log, die_at=die_at) == -signal.SIGKILL
        die_at += 3
    write_cells(files[1], 60, 40, seed=2)
    for name in ("s.zarr", "fresh.zarr"):
        assert prepare(words(name), log) == 0
    assert "continuing with the parts that an earlier start finished" in log_of(tmp_path)
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "fresh.zarr")


def test_promise_05_a_kill_of_an_add_leaves_the_store_whole(preparation: Preparation, tmp_path: Path) -> None:
    """At every step the store is either the old or the new one; the next start makes the new one."""
    first = [*preparation.files[:2], "--medians", preparation.medians, "--keep-values", "--test", "0.2", "--out"]
    log = tmp_path / "log"
    for name in ("before.zarr", "after.zarr"):
        assert prepare([*first, tmp_path / name], log) == 0
    before = Manifest.load(tmp_path / "before.zarr")
    assert prepare(preparation.added(tmp_path / "after.zarr"), log, count=tmp_path / "steps") == 0
    after, expected = Manifest.load(tmp_path / "after.zarr"), contents(tmp_path / "after.zarr")
    steps = int((tmp_path / "steps").read_text())
    seen = set()
    # All of the last steps, where the data set is moved into the store, and some earlier ones.
    for die_at in [*random.Random(1).sample(range(1, steps - 24), 4), *range(steps - 24, steps + 1)]:
        out = tmp_path / f"{die_at}.zarr"
        shutil.copytree(tmp_path / "before.zarr", out)
        assert prepare(preparation.added(out), log, die_at=die_at) == -signal.SIGKILL
        assert Manifest.load(out) in (before, after)
        assert find_damage(out) == []
        named, moved = Manifest.load(out) == after, (out / "c").exists()
        seen.add((named, moved))
        if not named:
            assert prepare(preparation.added(out), log) == 0
        assert contents(out) == expected
        shutil.rmtree(out)
    assert seen == {(False, False), (False, True), (True, True)}


def test_an_add_that_was_killed_after_its_end_undoes_nothing(preparation: Preparation, tmp_path: Path) -> None:
    """The manifest names the data set, but the work folder still exists. The next --add adds another data set."""
    log, out = tmp_path / "log", tmp_path / "s.zarr"
    words = ["--medians", preparation.medians, "--keep-values", "--test", "0.2", "--out"]
    for name in ("other.zarr", "s.zarr"):
        assert prepare([preparation.files[0], *words, tmp_path / name], log) == 0
    assert prepare(preparation.added(tmp_path / "other.zarr"), log, count=tmp_path / "steps") == 0
    steps = int((tmp_path / "steps").read_text())
    assert prepare(preparation.added(out), log, die_at=steps - 2) == -signal.SIGKILL
    assert list((tmp_path / ".s.zarr.work").glob("datasets/c/finished/written.json")) == []
    (tmp_path / ".s.zarr.work/datasets/c/finished").mkdir(parents=True, exist_ok=True)
    assert prepare([preparation.files[1], "--out", out, "--add"], log) == 0
    assert [entry.name for entry in Manifest.load(out).datasets] == ["a", "c", "b"]
    assert find_damage(out) == []


def test_the_rest_of_a_killed_add_is_removed_by_another_add(preparation: Preparation, tmp_path: Path) -> None:
    """The data set is in the store but not in its manifest, and the user does not add it again."""
    log, out = tmp_path / "log", tmp_path / "s.zarr"
    words = ["--medians", preparation.medians, "--out", out, "--test", "0.2"]
    assert prepare([preparation.files[0], *words], log) == 0
    add = [preparation.files[2], "--out", out, "--add", "--test", "0.2"]
    assert prepare(add, log) == 0
    manifest = Manifest.load(out)
    assert [entry.name for entry in manifest.datasets] == ["a", "c"]
    # As if the process was killed after it moved the data set and before it wrote the manifest.
    (out / "stray").mkdir()
    for path in (out / "c").iterdir():
        if path.is_dir():
            (out / "stray" / path.name).mkdir()
        else:
            (out / "stray" / path.name).write_bytes(path.read_bytes())
    assert prepare([preparation.files[1], "--out", out, "--add"], log) == 0
    assert "stray: was left by an --add that did not finish; removing it" in log_of(tmp_path)
    assert not (out / "stray").exists()
    assert find_damage(out) == []


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def workers(pid: int) -> Iterator[int]:
    """Yield the workers of a process, which are the children of its fork server."""
    for child in children(pid):
        if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
            yield from children(child)


def test_a_killed_worker_ends_the_start_and_the_next_one_continues(preparation: Preparation, tmp_path: Path) -> None:
    out, log = tmp_path / "s.zarr", tmp_path / "log"
    words = ["shards", *preparation.words(out, "--workers", "2")]
    process = start_data(words, log, partial(set_up, part_cells=4))
    work = tmp_path / ".s.zarr.work"
    while process.is_alive() and not any(work.glob("datasets/a/parts-*/[!.]*")):
        time.sleep(0.005)
    victim = next(workers(process.pid))
    os.kill(victim, signal.SIGKILL)
    process.join()
    assert process.exitcode == 1
    assert "a worker process was killed" in log_of(tmp_path)
    assert "the same command continues from there" in log_of(tmp_path)
    assert "Traceback" not in log_of(tmp_path)
    assert not out.exists()
    assert prepare(preparation.words(out), log, part_cells=4) == 0
    assert contents_but_obs(out) == contents_but_obs(preparation.whole)


def contents_but_obs(store: Path) -> dict[str, str]:
    """All contents except obs, whose row groups depend on the size of parts, and the manifest, which holds its hash."""
    return {name: value for name, value in contents(store).items() if "obs.parquet" not in name and name != "zarr.json"}


@pytest.mark.parametrize("workers", [2, 5])
def test_the_bytes_do_not_depend_on_workers(preparation: Preparation, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "s.zarr"
    assert prepare(preparation.words(out, "--workers", str(workers)), tmp_path / "log") == 0
    assert contents(out) == preparation.expected


def test_the_bytes_do_not_depend_on_dask_or_on_its_workers_deaths(preparation: Preparation, tmp_path: Path) -> None:
    """A Dask scheduler with two worker processes, one of which is killed on the way."""
    out, log = tmp_path / "s.zarr", tmp_path / "log"
    work = tmp_path / ".s.zarr.work"
    with dask_cluster(2) as cluster:
        words = ["shards", *preparation.words(out, "--dask", cluster.address)]
        process = start_data(words, log, partial(set_up, part_cells=16))
        while process.is_alive() and not any(work.glob("datasets/*/parts-*/[!.]*")):
            time.sleep(0.002)
        cluster.workers[0].kill()
        process.join()
    assert process.exitcode == 0, log_of(tmp_path)
    assert contents(out) == preparation.expected

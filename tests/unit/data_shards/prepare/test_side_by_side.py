"""Files are processed in parallel: many small ones keep as many workers busy as a large one."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data_shards.counts.count_file import open_counts
from data_shards.errors import DataError
from data_shards.inspect.verify import find_damage
from data_shards.medians import tdigest_parts
from data_shards.medians.make_medians import make_medians
from data_shards.prepare import rank_datasets
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from data_shards.workers import workers
from data_shards.workers.workers import Call, Steps, Workers
from tests.support.count_files import draw_counts, write_counts

_PATIENCE_S = 60


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are threads of this process, so they see functions that a test has patched."""
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda count, context, begin: ThreadPoolExecutor(count))


def two_at_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, blocked until another thread has called it too."""
    meeting = threading.Barrier(2)

    def met(*arguments: Any) -> Any:
        meeting.wait(_PATIENCE_S)
        return function(*arguments)

    return met


def test_a_job_continues_while_a_task_of_another_one_runs(threads: None) -> None:
    """The task of b ends only after the second step of a has ended."""
    events: list[str] = []
    ended = threading.Event()

    def work(task: str) -> None:
        if task == "b1":
            assert ended.wait(_PATIENCE_S)
        elif task == "a2":
            ended.set()

    def job(name: str, n_steps: int) -> Steps:
        for step in range(1, n_steps + 1):
            yield [(work, f"{name}{step}")]
            yield []
        events.append(f"{name} ends")

    with Workers(2) as pool:
        for task in pool.run([job("a", 2), job("b", 1), job("empty", 0)]):
            events.append(task)
    assert [one for one in events if one.startswith("a")] == ["a1", "a2", "a ends"]
    assert events.index("b1") < events.index("b ends")
    assert "empty ends" in events


@pytest.mark.parametrize("count", [1, 2])
def test_jobs_begin_when_there_is_nothing_else_to_do(threads: None, count: int) -> None:
    begun: list[int] = []

    def job(number: int) -> Steps:
        begun.append(number)
        yield [(abs, (number, i)) for i in range(3)]

    with Workers(count) as pool:
        tasks = pool.run(job(number) for number in range(6))
        with pytest.raises(TypeError, match="abs"):
            next(tasks)
    assert begun == [0] if count == 1 else [0, 1]


def test_an_error_of_a_job_ends_all(threads: None) -> None:
    def job(number: int) -> Steps:
        calls: list[Call] = [(str, number)]
        yield calls
        if number == 1:
            raise DataError("one is not liked")

    with Workers(2) as pool:
        tasks = pool.run(job(number) for number in range(100))
        assert [next(tasks), next(tasks)] == [0, 1]
        with pytest.raises(DataError, match="one is not liked"):
            next(tasks)


def test_data_sets_are_prepared_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """Each file is one part: both can run at once only if the second begins before the first is done."""
    files = [write_counts(tmp_path / f"{name}.h5ad", draw_counts(20, 12)) for name in "ab"]
    monkeypatch.setattr(tdigest_parts, "digest_partition", two_at_once(tdigest_parts.digest_partition))
    monkeypatch.setattr(rank_datasets, "rank_range", two_at_once(rank_datasets.rank_range))
    make_medians(files, tmp_path / "m.zarr", workers=2)
    manifest = make_store(
        files, tmp_path / "m.zarr", tmp_path / "s.zarr", top_k=8, splits=SplitOptions(by="none"), workers=2
    )
    assert [entry.name for entry in manifest.datasets] == ["a", "b"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_cannot_be_opened_stops_none_ahead_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None, workers: int
) -> None:
    """It is opened while the file before it is ranked. The next start does not repeat finished files."""
    files = [write_counts(tmp_path / f"{name}.h5ad", draw_counts(20, 12, seed)) for seed, name in enumerate("abc")]
    make_medians(files, tmp_path / "m.zarr")
    options = {"top_k": 8, "splits": SplitOptions(by="none"), "workers": workers}
    make_store(files, tmp_path / "m.zarr", tmp_path / "whole.zarr", **options)  # type: ignore[arg-type]
    real, ranked_cells = rank_datasets.rank_range, []

    def watched(plan: Any, task: Any) -> Any:
        ranked_cells.append(task.source.path.stem)
        return real(plan, task)

    monkeypatch.setattr(rank_datasets, "rank_range", watched)

    def store_with(broken: str) -> None:
        def refuse(path: Path, *rest: Any) -> Any:
            if path.stem == broken:
                raise DataError(f"{path} is broken")
            return open_counts(path, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(rank_datasets, "open_counts", refuse)
            make_store(files, tmp_path / "m.zarr", tmp_path / "s.zarr", **options)  # type: ignore[arg-type]

    with pytest.raises(DataError, match=r"b\.h5ad is broken"):
        store_with("b")
    shutil.move(tmp_path / ".s.zarr.work/datasets/a", tmp_path / "a")
    with pytest.raises(DataError, match=r"c\.h5ad is broken"):
        store_with("c")
    # Now only b is finished, between two unfinished files.
    shutil.rmtree(tmp_path / ".s.zarr.work/datasets/a")
    store_with("nothing")
    assert ranked_cells == ["a", "a", "b", "a", "c"]
    assert Manifest.load(tmp_path / "s.zarr").hash == Manifest.load(tmp_path / "whole.zarr").hash
    assert find_damage(tmp_path / "s.zarr") == []

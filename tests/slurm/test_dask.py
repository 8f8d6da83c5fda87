"""`gm-train data ... --slurm` on a real SLURM: the output equals that of a local run, and the jobs always end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_shards.files.atomic import hash_path
from data_shards.inspect.verify import find_damage
from data_shards.store.manifest import Manifest
from tests.conftest import write_cells
from tests.slurm.conftest import Slurm, poll

if find_spec("dask_jobqueue") is None:  # importing it would replace the Ctrl-C handler of all other tests
    pytest.skip("needs dask_jobqueue", allow_module_level=True)

#: Time limit in seconds for what takes seconds on an idle machine.
PATIENCE = 600.0
WORKERS = ("cluster.nodes=2", "cluster.cpus_per_task=1", "cluster.time=00:10:00", "cluster.partition=debug")


class Command:
    """A `gm-train data` command in a process of its own, as a user starts it."""

    def __init__(self, slurm: Slurm, folder: Path, *words: str | Path) -> None:
        self.slurm, self.folder, self.log = slurm, folder, folder / "command.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "gm_train.cli", "data", *map(str, words)],
                env=slurm.environment | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
                stdout=log, stderr=subprocess.STDOUT,
                # If pytest runs in the background, its children may ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip

    def output(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler writes the stacks of all threads
            self.process.wait()
            raise AssertionError(f"still running after {PATIENCE} s:\n{self.output()}") from None

    def wait_for(self, n: int) -> dict[int, list[int]]:
        """Wait until `n` jobs have a registered worker, then stop (SIGSTOP) and return the processes of each job.

        A worker that has just got its first task imports modules for seconds: no task is finished yet.
        """
        poll(lambda: len(self.registered()) >= n or self.process.poll() is not None, PATIENCE, self.output)
        assert self.process.poll() is None, self.output()
        pids_of_job = {job: self.slurm.processes(job) for job in self.registered()}
        for pids in pids_of_job.values():
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        return pids_of_job

    def registered(self) -> list[int]:
        logs = self.folder.glob(".*.slurm-*/*.out")
        return sorted(int(log.stem) for log in logs if "Registered to" in log.read_text())


def resume(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def queue(slurm: Slurm) -> Iterator[Slurm]:
    """The cluster. All jobs are ended after the test."""
    yield slurm
    slurm.scancel("--partition=debug")
    poll(lambda: not slurm.cluster.run("squeue", "--noheader"), PATIENCE, lambda: slurm.cluster.run("squeue"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of one partition each."""
    folder = tmp_path_factory.mktemp("files")
    return [write_cells(folder / f"d{i:02d}.h5ad", 60, 50, seed=i) for i in range(24)]


def no_jobs(slurm: Slurm) -> bool:
    return not slurm.cluster.run("squeue", "--noheader")


def left(folder: Path) -> list[str]:
    """Return the names in the folder, without the log."""
    return sorted(path.name for path in folder.iterdir() if path.name != "command.log")


def test_medians_and_shards_are_the_same_bytes(queue: Slurm, files: list[Path], tmp_path: Path) -> None:
    local, cluster = tmp_path / "local", tmp_path / "of two words"
    for folder, engine in ((local, []), (cluster, ["--slurm", *WORKERS])):
        folder.mkdir()
        made = Command(queue, folder, "medians", *files, "--out", folder / "m.zarr", *engine)
        assert made.wait() == 0, made.output()
        words = ("--medians", folder / "m.zarr", "--out", folder / "s.zarr", "--top-k", "32")
        made = Command(queue, folder, "shards", *files, *words, *engine)
        assert made.wait() == 0, made.output()
    assert hash_path(local / "m.zarr") == hash_path(cluster / "m.zarr")
    assert hash_path(local / "s.zarr") == hash_path(cluster / "s.zarr")
    assert find_damage(cluster / "s.zarr") == []
    assert left(cluster) == ["m.zarr", "s.zarr"]
    poll(lambda: no_jobs(queue), PATIENCE, lambda: queue.cluster.run("squeue"))


@pytest.mark.slow
def test_a_job_that_is_cancelled_half_way(queue: Slurm, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m.zarr"
    command = Command(queue, tmp_path, "medians", *files, "--out", out, "--slurm", *WORKERS)
    # The first worker stays stopped, and keeps the tasks that it has.
    (first, held), (_, others) = command.wait_for(2).items()
    resume(others)
    assert not out.exists()
    queue.scancel(first)
    resume(held)
    assert command.wait() == 0, command.output()
    expected = Command(queue, tmp_path, "medians", *files, "--out", tmp_path / "local.zarr")
    assert expected.wait() == 0
    assert hash_path(out) == hash_path(tmp_path / "local.zarr")


@pytest.mark.slow
def test_a_job_that_is_put_back_into_the_queue_comes_back(queue: Slurm, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m.zarr"
    only = ("cluster.nodes=1", *WORKERS[1:])
    command = Command(queue, tmp_path, "medians", *files, "--out", out, "--slurm", *only)
    ((job, pids),) = command.wait_for(1).items()
    queue.scontrol("requeuehold", str(job))
    resume(pids)
    queue.wait(job, "PENDING", PATIENCE)
    poll(lambda: not queue.processes(job), PATIENCE, lambda: queue.show(job))
    # A job in the queue is waited for even without a process, and longer than Dask would do by default (15 s).
    time.sleep(20)
    assert not out.exists()
    queue.scontrol("release", str(job))
    queue.start_now(job, 1, PATIENCE)
    assert command.wait() == 0, command.output()
    assert hash_path(out)
    assert queue.field(job, "Restarts") == "1"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_jobs_end_with_the_command(queue: Slurm, files: list[Path], tmp_path: Path, number: signal.Signals) -> None:
    command = Command(queue, tmp_path, "medians", *files, "--out", tmp_path / "m.zarr", "--slurm", *WORKERS)
    halted = command.wait_for(2)
    command.process.send_signal(number)
    assert command.wait() == (-number if number == signal.SIGKILL else 1), command.output()
    for pids in halted.values():
        resume(pids)
    poll(lambda: no_jobs(queue), PATIENCE, lambda: queue.cluster.run("squeue"))
    assert not (tmp_path / "m.zarr").exists()
    if number != signal.SIGKILL:
        assert "interrupted" in command.output()
        assert not any("slurm" in name for name in left(tmp_path))
    # The same command continues from what is finished.
    again = Command(queue, tmp_path, "medians", *files, "--out", tmp_path / "m.zarr")
    assert again.wait() == 0, again.output()


def test_an_error_of_the_work_ends_the_jobs(queue: Slurm, tmp_path: Path) -> None:
    bad = tmp_path / "bad.h5ad"
    bad.write_bytes(b"this is no file of counts")
    command = Command(queue, tmp_path, "medians", bad, "--out", tmp_path / "m.zarr", "--slurm", *WORKERS)
    assert command.wait() == 1
    assert "bad.h5ad: not an AnnData file" in command.output()
    poll(lambda: no_jobs(queue), PATIENCE, lambda: queue.cluster.run("squeue"))
    assert left(tmp_path) == ["bad.h5ad"]


def test_jobs_that_end_by_themselves_are_not_waited_for(queue: Slurm, files: list[Path], tmp_path: Path) -> None:
    setup = "cluster.setup=[echo before, module load nowhere, echo after]"
    command = Command(queue, tmp_path, "medians", *files, "--out", tmp_path / "m.zarr", "--slurm", *WORKERS, setup)
    assert command.wait() == 1
    output = command.output()
    assert "all worker jobs have ended before the work was done" in output
    assert "module: command not found" in output
    assert "\n    before" in output
    assert "after" not in output.split("the last lines")[1]
    (logs,) = tmp_path.glob(".m.zarr.slurm-*")
    assert str(logs) in output
    assert not list(logs.glob("*.pem"))


def test_a_job_that_slurm_rejects(queue: Slurm, files: list[Path], tmp_path: Path) -> None:
    words = (*WORKERS[:3], "cluster.partition=gone")
    command = Command(queue, tmp_path, "medians", *files, "--out", tmp_path / "m.zarr", "--slurm", *words)
    assert command.wait() == 1
    assert "invalid partition" in command.output().lower()
    assert "look at cluster.partition: `sinfo -s` lists the partitions" in command.output()
    assert left(tmp_path) == []
    assert no_jobs(queue)


@pytest.mark.slow
def test_a_store_is_added_to_by_workers(queue: Slurm, files: list[Path], tmp_path: Path) -> None:
    medians, store = tmp_path / "m.zarr", tmp_path / "s.zarr"
    assert Command(queue, tmp_path, "medians", *files[:4], "--out", medians).wait() == 0
    assert Command(queue, tmp_path, "shards", *files[:2], "--medians", medians, "--out", store).wait() == 0
    two = ("cluster.nodes=1", "cluster.cpus_per_task=2", *WORKERS[2:])
    command = Command(queue, tmp_path, "shards", *files[2:4], "--out", store, "--add", "--slurm", *two)
    assert command.wait() == 0, command.output()
    assert [entry.name for entry in Manifest.load(store).datasets] == ["d00", "d01", "d02", "d03"]

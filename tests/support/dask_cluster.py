"""A Dask scheduler and worker processes on this machine, started as a user starts them by hand."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import data_shards

_HERE = str(Path(data_shards.__file__).parents[1])


class DaskCluster:
    """A scheduler and its workers.

    Attributes:
        address: of the scheduler.
        scheduler: process of the scheduler.
        workers: processes of the workers.
    """

    def __init__(self) -> None:
        self.workers: list[subprocess.Popen[str]] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        assert self.scheduler.stderr is not None
        line = next(line for line in self.scheduler.stderr if "Scheduler at" in line)
        self.address = line.split()[-1]

    def add_worker(self) -> "subprocess.Popen[str]":
        """Start a worker with one thread; it joins a second or two later."""
        worker = self._start("worker", self.address, "--nthreads", "1", "--no-nanny")
        self.workers.append(worker)
        return worker

    def stop(self) -> None:
        """Kill all processes."""
        for process in [self.scheduler, *self.workers]:
            process.kill()
            process.communicate()

    @staticmethod
    def _start(what: str, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *words, "--no-dashboard"]
        stderr = subprocess.PIPE if what == "scheduler" else subprocess.DEVNULL
        environment = os.environ | {"PYTHONPATH": _HERE, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL, text=True, env=environment)


@contextmanager
def dask_cluster(n_workers: int = 0) -> Iterator[DaskCluster]:
    """Run a scheduler with some workers, and kill them at the end of the block."""
    cluster = DaskCluster()
    try:
        for _ in range(n_workers):
            cluster.add_worker()
        yield cluster
    finally:
        cluster.stop()

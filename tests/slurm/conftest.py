"""The fixture `slurm`: a real SLURM of two nodes, for every test in this folder."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cluster.local_slurm import PATH, LocalSlurm

NOT_INSTALLED = "slurm-wlm and munge are not installed: apt-get install slurm-wlm munge"
#: States that a job does not leave by itself.
FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"})


def poll(met: Callable[[], object], timeout: float, what: Callable[[], str]) -> None:
    """Wait until `met` returns true.

    Args:
        met: the condition.
        timeout: seconds after which the test fails.
        what: returns the message of that failure.
    """
    end = time.monotonic() + timeout
    while not met():
        if time.monotonic() > end:
            pytest.fail(f"after {timeout:.0f} s: {what()}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Slurm:
    """A running cluster of the nodes n1 and n2, with the commands that tests need.

    Both nodes are this machine and share its files. Each claims 16 CPUs and 2 GPUs, which need not exist.
    """

    cluster: LocalSlurm

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which sbatch, srun and other commands find the cluster (SLURM_CONF)."""
        return self.cluster.environment

    def sbatch(self, *words: str | Path) -> int:
        """Submit a job: options, and a script with its arguments. Return the number of the job.

        The job has the environment of this process, without SLURM's variables. Use `--output`: otherwise the output
        is written into the working directory of the tests.
        """
        return int(self.cluster.run("sbatch", "--parsable", *map(str, words)).split(";")[0])

    def field(self, job: int, name: str) -> str:
        """Return one field of `scontrol show job`, for example Restarts, Reason, ExitCode or StartTime."""
        fields = dict(word.partition("=")[::2] for word in self.scontrol("show", "job", "--oneliner", str(job)).split())
        return fields[name]

    def state(self, job: int) -> str:
        """Return the job's state: PENDING, RUNNING, COMPLETING, or one of FINAL."""
        return self.field(job, "JobState")

    def wait(self, job: int, states: str | Collection[str] = FINAL, timeout: float = 120) -> str:
        """Wait until the job is in one of the states, and return that state.

        A short state may be missed: then wait for an effect of the job, or for a final state.

        Args:
            job: number of the job.
            states: one state, or several.
            timeout: seconds after which the test fails.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        seen = [""]

        def met() -> bool:
            seen.append(self.state(job))
            return seen[-1] in wanted

        poll(met, timeout, lambda: f"job {job} is {seen[-1]}, not {sorted(wanted)}\n{self.show(job)}")
        return seen[-1]

    def show(self, job: int) -> str:
        """Return SLURM's description of a job, for the message of a failed test."""
        return self.scontrol("show", "job", str(job))

    def scontrol(self, *words: str) -> str:
        """Run `scontrol` and return its output; raise DataError if it fails."""
        return self.cluster.run("scontrol", *words)

    def start_now(self, job: int, restarts: int = 1, timeout: float = 120) -> None:
        """Wait until the job was requeued, and shorten its delay (10 s here, 120 s by default) to 2 s.

        It cannot be shorter: a job that starts in the second of its requeue fails with "Job credential revoked".

        Args:
            job: number of the job.
            restarts: number of requeues to wait for.
            timeout: seconds after which the test fails.
        """
        rest = timedelta(seconds=2)

        def rested() -> bool:
            if int(self.field(job, "Restarts")) < restarts or self.state(job) == "COMPLETING":
                return False
            return datetime.now() >= datetime.fromisoformat(self.field(job, "SubmitTime")) + rest  # of the requeue

        poll(rested, timeout, lambda: f"job {job} is not requeued\n{self.show(job)}")
        # This fails if the job has just started by itself.
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def scancel(self, *words: str | int) -> None:
        """Run `scancel`. A job's number ends it; with `--signal=USR1` before it, only its tasks get the signal."""
        self.cluster.run("scancel", *map(str, words))

    def processes(self, job: int) -> list[int]:
        """Return the ids of a job's processes on both nodes: batch script, srun, tasks and their children."""
        return sorted(self.cluster.processes(f"SLURM_JOB_ID={job}"))

    def kill_node(self, name: str, tasks: bool = True) -> None:
        """Kill a node's slurmd and its jobs. With `tasks=False` the jobs live on, as behind a broken network.

        The controller notices this within about 30 seconds and requeues the jobs of the node. To speed this up:
        `scontrol("update", f"NodeName={name}", "State=DOWN", "Reason=test")`.
        """
        self.cluster.stop(name, [signal.SIGKILL])
        if tasks:
            self.cluster.kill_jobs(name)

    def revive_node(self, name: str, timeout: float = 120) -> None:
        """Start a node's slurmd again if it is not running, and wait until the node accepts jobs."""
        if self.cluster.pid(name) is None:
            # The controller repeats messages to a node that did not answer after a minute. One of them ends the job
            # that the node had, and would end its next start. Users' jobs wait longer before they start again.
            self.cluster.stop("slurmctld")
            self.cluster.start("slurmctld")
        self.cluster.up(timeout)
        poll(
            lambda: self.cluster.states()[name] in {"idle", "mixed", "allocated"},
            timeout, lambda: f"{name} is {self.cluster.states()[name]}",
        )  # fmt: skip


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip tests if SLURM is not installed; on CI, fail."""
    if not all(shutil.which(program, path=PATH) for program in ("sbatch", "slurmctld", "slurmd", "munged")):
        if os.environ.get("CI") == "true":
            pytest.fail(NOT_INSTALLED)
        pytest.skip(NOT_INSTALLED)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for a cluster. Sockets need a short path, and those of pytest's tmp_path are too long."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    yield folder / "cluster"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def slurm(slurm_installed: None) -> Iterator[Slurm]:
    """A cluster of two idle nodes, shared by all tests of a session: each test must end its jobs."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = LocalSlurm(folder / "cluster")
    try:
        cluster.up()
        yield Slurm(cluster)
    finally:
        cluster.down()
        shutil.rmtree(folder)

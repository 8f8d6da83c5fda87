"""A real SLURM of two nodes, for every test in this folder: the fixture `slurm`."""

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
    """Wait until `met` is true; fails the test with `what` it waited for."""
    end = time.monotonic() + timeout
    while not met():
        if time.monotonic() > end:
            pytest.fail(f"after {timeout:.0f} s: {what()}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Slurm:
    """A running cluster of the nodes n1 and n2, and the commands that tests give it.

    Both nodes are this machine: they share its files. Each has 16 CPUs and 2 GPUs, none of which need exist.
    """

    cluster: LocalSlurm

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which sbatch, srun and the others find the cluster (SLURM_CONF)."""
        return self.cluster.environment

    def sbatch(self, *words: str | Path) -> int:
        """Submit a job: a script and its arguments, options, or both. Returns its number.

        The job's environment is this process's, less SLURM's variables. Without `--output` its output is in the
        working directory of the tests: name a file.
        """
        return int(self.cluster.run("sbatch", "--parsable", *map(str, words)).split(";")[0])

    def field(self, job: int, name: str) -> str:
        """One field of `scontrol show job`, for example Restarts, Reason, ExitCode or StartTime."""
        fields = dict(word.partition("=")[::2] for word in self.scontrol("show", "job", "--oneliner", str(job)).split())
        return fields[name]

    def state(self, job: int) -> str:
        """The job's state: PENDING, RUNNING, COMPLETING, or one of FINAL."""
        return self.field(job, "JobState")

    def wait(self, job: int, states: str | Collection[str] = FINAL, timeout: float = 30) -> str:
        """Wait until the job is in one of the states, and return that. Fails the test after the timeout.

        A job that goes through a state quickly is not necessarily seen in it: wait for what it does instead, or for
        what cannot be undone.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        seen = [""]

        def met() -> bool:
            seen.append(self.state(job))
            return seen[-1] in wanted

        poll(met, timeout, lambda: f"job {job} is {seen[-1]}, not {sorted(wanted)}\n{self.show(job)}")
        return seen[-1]

    def show(self, job: int) -> str:
        """What SLURM knows of a job, for the message of a failed test."""
        return self.scontrol("show", "job", str(job))

    def scontrol(self, *words: str) -> str:
        """The output of `scontrol`; DataError if it fails."""
        return self.cluster.run("scontrol", *words)

    def start_now(self, job: int, restarts: int = 1, timeout: float = 30) -> None:
        """Wait until the job was requeued so many times, and shorten its wait (10 seconds here, 120 by default) to 2.

        A job that starts in the second of its requeue fails: "Job credential revoked". Hence the wait.
        """
        rest = timedelta(seconds=2)

        def rested() -> bool:
            if int(self.field(job, "Restarts")) < restarts or self.state(job) == "COMPLETING":
                return False
            return datetime.now() >= datetime.fromisoformat(self.field(job, "SubmitTime")) + rest  # of the requeue

        poll(rested, timeout, lambda: f"job {job} is not requeued\n{self.show(job)}")
        # It fails if the job has just started by itself.
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def scancel(self, *words: str | int) -> None:
        """`scancel` with these words: a job's number ends it; after `--signal=USR1` only its tasks get that."""
        self.cluster.run("scancel", *map(str, words))

    def processes(self, job: int) -> list[int]:
        """The processes that now run in a job, on either node: batch script, srun, tasks and their children."""
        return sorted(self.cluster.processes(f"SLURM_JOB_ID={job}"))

    def kill_node(self, name: str, tasks: bool = True) -> None:
        """SIGKILL a node's slurmd, and what it runs. With `tasks=False` that lives on, as behind a broken network.

        The controller notices within 30 seconds or so; it then requeues the jobs of the node. To have it at once:
        `scontrol("update", f"NodeName={name}", "State=DOWN", "Reason=test")`.
        """
        self.cluster.stop(name, [signal.SIGKILL])
        if tasks:
            self.cluster.kill_jobs(name)

    def revive_node(self, name: str, timeout: float = 60) -> None:
        """Start a node's slurmd again if it is not running, and wait until the node takes jobs."""
        self.cluster.up(timeout)
        poll(
            lambda: self.cluster.states()[name] in {"idle", "mixed", "allocated"},
            timeout, lambda: f"{name} is {self.cluster.states()[name]}",
        )  # fmt: skip


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skips where SLURM is not installed; on CI it has to be."""
    if not all(shutil.which(program, path=PATH) for program in ("sbatch", "slurmctld", "slurmd", "munged")):
        if os.environ.get("CI") == "true":
            pytest.fail(NOT_INSTALLED)
        pytest.skip(NOT_INSTALLED)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for a cluster: the sockets in it allow only a short path, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    yield folder / "cluster"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def slurm(slurm_installed: None) -> Iterator[Slurm]:
    """A cluster of two idle nodes, the same for all tests of a session: clean up your jobs."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    cluster = LocalSlurm(folder / "cluster")
    try:
        cluster.up()
        yield Slurm(cluster)
    finally:
        cluster.down()
        shutil.rmtree(folder)

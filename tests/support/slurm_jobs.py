"""Real training jobs: launch them as a user does, halt them between two steps, signal single ranks."""

import json
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.workers import proc
from gm_train.checkpoint.find import list_checkpoints
from gm_train.cli.main import main
from gm_train.run.records import METRICS, read_rows
from tests.slurm.conftest import FINAL, Slurm, poll

LOCAL_CPU = str(Path(__file__).parents[2] / "configs/cluster/local-cpu.yaml")
#: Seconds to wait for what takes a few seconds on an idle machine.
PATIENCE = 600.0


def launch(slurm: Slurm, run: Path, *words: str) -> "Job":
    """Run `gm-train launch`, which must succeed, on both nodes with one rank each.

    Args:
        slurm: the test cluster.
        run: the run directory.
        words: further settings; they override the defaults.
    """
    assert main(["launch", LOCAL_CPU, f"run.dir={run}", *words]) == 0
    number = max((run / "launch").glob("*/job_id")).read_text()
    return Job(slurm, int(number), run)


@dataclass(frozen=True)
class Job:
    """A job that trains into a run directory."""

    slurm: Slurm
    number: int
    run: Path

    def step(self, when: float = math.inf) -> int:
        """The last step with a row of a time up to `when` (seconds since 1970); 0 if there is none yet.

        A row is made one step later, and written at most a second after that or with the next checkpoint.
        """
        return max((row["step"] for row in read_rows(self.run / METRICS) if row["time"] <= when), default=0)

    def saved(self) -> list[int]:
        """The steps of the checkpoints."""
        return [checkpoint.step for checkpoint in list_checkpoints(self.run / "checkpoints")]

    def starts(self) -> list[dict[str, Any]]:
        """The entry of each start in environment.json."""
        starts: list[dict[str, Any]] = json.loads((self.run / "environment.json").read_text())["starts"]
        return starts

    def output(self, who: str = "*") -> str:
        """The output of the `batch` script, rank `0` or rank `1`; of all of them by default."""
        logs = sorted((self.run / "logs").glob(f"{self.number}-{who}.out"))
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)

    def ranks(self, restart: int = 0) -> dict[int, int]:
        """The process id of each rank of one start; only of ranks that already run Python."""
        rank_and_parent: dict[int, tuple[int, int]] = {}
        for pid in self.slurm.processes(self.number):
            variables = dict(word.partition("=")[::2] for word in proc.words(pid, "environ"))
            trains = proc.words(pid, "cmdline")[1:4] == ["-m", "gm_train.cli", "fit"]
            parent = proc.status(pid).get("PPid")
            if trains and parent and int(variables.get("SLURM_RESTART_COUNT", 0)) == restart:
                rank_and_parent[pid] = int(variables["SLURM_PROCID"]), int(parent)
        # Leave out the loader workers of a rank, which are forks of it.
        return {rank: pid for pid, (rank, parent) in rank_and_parent.items() if parent not in rank_and_parent}

    def wait_for_step(self, step: int) -> None:
        """Wait until this step is recorded."""
        poll(lambda: self.step() >= step or self.slurm.state(self.number) == "FAILED", PATIENCE, self.output)
        assert self.step() >= step, self.output()

    def wait(self, state: str) -> None:
        """Wait until the job ends; assert that it ends in this state."""
        poll(self.is_over, PATIENCE, lambda: f"not over\n{self}")
        assert self.slurm.state(self.number) == state, str(self)

    def restarts(self) -> int:
        """How often the job was put back into the queue."""
        return int(self.slurm.field(self.number, "Restarts"))

    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.slurm.state(self.number) in FINAL

    def wait_for_requeue(self, restarts: int) -> None:
        """Wait until the job has been requeued `restarts` times; it starts again by itself after a while."""
        poll(lambda: self.restarts() >= restarts or self.is_over(), PATIENCE, lambda: f"not requeued\n{self}")
        assert self.restarts() == restarts, str(self)

    def come_back(self, restarts: int) -> None:
        """Wait until the job has been requeued `restarts` times, and let it start at once."""
        self.slurm.start_now(self.number, restarts, PATIENCE)

    def halt(self, *only: int, restart: int = 0) -> int:
        """Stop (SIGSTOP) the given ranks of a start, or all, at any point; return the last recorded step."""
        ranks = {rank: pid for rank, pid in self.ranks(restart).items() if rank in only or not only}
        assert ranks, f"no ranks of start {restart + 1}\n{self}"
        for pid in ranks.values():
            os.kill(pid, signal.SIGSTOP)
        poll(lambda: all(_state(pid) == "T" for pid in ranks.values()), PATIENCE, lambda: f"not halted\n{self}")
        return self.step()

    def wake(self, restart: int = 0) -> None:
        """Let halted ranks continue (SIGCONT)."""
        for pid in self.ranks(restart).values():
            os.kill(pid, signal.SIGCONT)

    def wait_for_usr1(self, *ranks: int, restart: int = 0) -> None:
        """Wait until SIGUSR1 is pending for these halted ranks."""
        pids = self.ranks(restart)
        poll(lambda: all(_has_usr1(pids[rank]) for rank in ranks), PATIENCE, lambda: f"no USR1 yet\n{self}")

    def __str__(self) -> str:
        return f"{self.slurm.show(self.number)}\n{self.output()}\n{self.slurm.cluster.logs(40)}"


def _state(pid: int) -> str:
    return proc.status(pid)["State"][0]


def _has_usr1(pid: int) -> bool:
    return bool(int(proc.status(pid)["ShdPnd"], 16) >> (signal.SIGUSR1 - 1) & 1)

"""A real training job: launched as a user does it, halted between two steps, signalled rank by rank."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.workers import proc
from gm_train.checkpoint.find import list_checkpoints
from gm_train.cli.main import main
from tests.slurm.conftest import FINAL, Slurm, poll
from tests.support.training_runs import history

LOCAL_CPU = str(Path(__file__).parents[2] / "configs/cluster/local-cpu.yaml")
#: For what takes seconds on a quiet machine.
PATIENCE = 240.0


def launch(slurm: Slurm, run: Path, *words: str) -> "Job":
    """`gm-train launch` onto both nodes with one rank each, unless the words say otherwise; it must succeed."""
    assert main(["launch", LOCAL_CPU, f"run.dir={run}", *words]) == 0
    number = max((run / "launch").glob("*/job_id")).read_text()
    return Job(slurm, int(number), run)


@dataclass(frozen=True)
class Job:
    """A job that trains into a run directory."""

    slurm: Slurm
    number: int
    run: Path

    def step(self) -> int:
        """The last step that is recorded, 0 before there is one."""
        return max((row["step"] for row in history(self.run)), default=0)

    def saved(self) -> list[int]:
        """The steps of the checkpoints."""
        return [checkpoint.step for checkpoint in list_checkpoints(self.run / "checkpoints")]

    def starts(self) -> list[dict[str, Any]]:
        """What environment.json says of each start."""
        starts: list[dict[str, Any]] = json.loads((self.run / "environment.json").read_text())["starts"]
        return starts

    def said(self, who: str = "*") -> str:
        """What `batch`, rank `0` or rank `1` printed; by default all of it."""
        logs = sorted((self.run / "logs").glob(f"{self.number}-{who}.out"))
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)

    def ranks(self, restart: int = 0) -> dict[int, int]:
        """The processes of the ranks of one start, once they run Python, by rank."""
        found: dict[int, tuple[int, int]] = {}
        for pid in self.slurm.processes(self.number):
            variables = dict(word.partition("=")[::2] for word in proc.words(pid, "environ"))
            trains = proc.words(pid, "cmdline")[1:4] == ["-m", "gm_train.cli", "fit"]
            parent = proc.status(pid).get("PPid")
            if trains and parent and int(variables.get("SLURM_RESTART_COUNT", 0)) == restart:
                found[pid] = int(variables["SLURM_PROCID"]), int(parent)
        # The loader workers of a rank are copies of it.
        return {rank: pid for pid, (rank, parent) in found.items() if parent not in found}

    def wait_for_step(self, step: int) -> None:
        poll(lambda: self.step() >= step or self.slurm.state(self.number) == "FAILED", PATIENCE, self.said)
        assert self.step() >= step, self.said()

    def wait(self, state: str) -> None:
        """Wait for the job's end, which must be this one."""
        poll(self.is_over, PATIENCE, lambda: f"not over\n{self}")
        assert self.slurm.state(self.number) == state, str(self)

    def restarts(self) -> int:
        """How often the job was put back into the queue."""
        return int(self.slurm.field(self.number, "Restarts"))

    def is_over(self) -> bool:
        return self.slurm.state(self.number) in FINAL

    def wait_for_requeue(self, restarts: int) -> None:
        """Wait until the job was put back into the queue so many times; it starts again by itself after a while."""
        poll(lambda: self.restarts() >= restarts or self.is_over(), PATIENCE, lambda: f"not requeued\n{self}")
        assert self.restarts() == restarts, str(self)

    def come_back(self, restarts: int) -> None:
        """Wait until the job was requeued so many times, and let it start."""
        self.slurm.start_now(self.number, restarts, PATIENCE)

    def halt(self, *only: int, restart: int = 0) -> int:
        """Stop all ranks of a start, or only some, wherever they are; returns the last step that they recorded."""
        ranks = {rank: pid for rank, pid in self.ranks(restart).items() if rank in only or not only}
        assert ranks, f"no ranks of start {restart + 1}\n{self}"
        for pid in ranks.values():
            os.kill(pid, signal.SIGSTOP)
        poll(lambda: all(_state(pid) == "T" for pid in ranks.values()), PATIENCE, lambda: f"not halted\n{self}")
        return self.step()

    def go_on(self, restart: int = 0) -> None:
        """Let halted ranks run."""
        for pid in self.ranks(restart).values():
            os.kill(pid, signal.SIGCONT)

    def wait_for_usr1(self, *ranks: int, restart: int = 0) -> None:
        """Wait until USR1 has reached these halted ranks."""
        pids = self.ranks(restart)
        poll(lambda: all(_has_usr1(pids[rank]) for rank in ranks), PATIENCE, lambda: f"no USR1 yet\n{self}")

    def __str__(self) -> str:
        return f"{self.slurm.show(self.number)}\n{self.said()}"


def _state(pid: int) -> str:
    return proc.status(pid)["State"][0]


def _has_usr1(pid: int) -> bool:
    return bool(int(proc.status(pid)["ShdPnd"], 16) >> (signal.SIGUSR1 - 1) & 1)

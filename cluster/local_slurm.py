"""A real SLURM of two nodes on one machine: `python -m cluster.local_slurm up|down|status`.

One munged, one slurmctld and the two slurmd `n1` and `n2` share 127.0.0.1 on free ports. Everything that they write
is in one folder, `.slurm/` unless told otherwise. It needs neither systemd nor a host name that resolves, and runs
as root or as an ordinary user, whose jobs only it can run. Each start has an empty queue: job numbers begin at 1.
"""

import argparse
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.workers import proc

NODES = ("n1", "n2")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # an ordinary user's lacks these
# slurmd keeps a socket per job step in its spool: spool-n1/n1_4294967295.4294967295 must fit into 107 bytes.
LONGEST_FOLDER = 70

# Nothing enforces the CPUs, memory and GPUs of a node: they are there for what job scripts ask for.
# cred_expire is also what a requeued job waits before it starts again (120 seconds by default).
CONFIGURATION = """\
ClusterName=gm-train
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=5
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
PropagateResourceLimits=NONE
MailProg=/bin/true
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=64000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=64000 Gres=gpu:2
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class LocalSlurm:
    """The cluster in one folder."""

    folder: Path

    @property
    def conf(self) -> Path:
        """The file that SLURM_CONF has to name."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with the cluster chosen and no trace of a job that it may run in."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return own | {"SLURM_CONF": str(self.conf), "PATH": PATH}

    def commands(self) -> dict[str, tuple[str, ...]]:
        """The programs of the cluster, in the order in which they start; each goes into the background by itself."""
        at, conf = self.folder, str(self.conf)
        return {
            "munged": (_program("munged"), "--force", f"--socket={at}/munge.socket", f"--pid-file={at}/munged.pid",
                       f"--key-file={at}/munge.key", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed"),
            "slurmctld": (_program("slurmctld"), "-f", conf),
            **{node: (_program("slurmd"), "-f", conf, "-N", node) for node in NODES},
        }  # fmt: skip

    def pid(self, name: str) -> int | None:
        """The process of a program, if that is alive and really runs its command: process ids are used again."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if tuple(proc.words(pid, "cmdline")) == self.commands()[name] else None

    def up(self, timeout: float = 60) -> bool:
        """Start what does not run, and wait until both nodes take jobs. False if all was up already."""
        # A cluster with its controller alive gets back what it lost; what is left of any other one is cleared away.
        if self.pid("slurmctld") is None:
            self.down()
            self._write()
        missing = [name for name in self.commands() if self.pid(name) is None]
        for name in missing:
            self.start(name)
        unfit = ("unknown", "down", "inval")  # "idle*": it does not answer yet
        if not _wait(lambda: not any(s.startswith(unfit) or s[-1] == "*" for s in self.states().values()), timeout):
            raise DataError(f"the nodes are not up after {timeout:.0f} s: {self.states()}\n{self._logs()}")
        return bool(missing)

    def down(self, patience: float = 10) -> bool:
        """End all jobs, then all programs, and wait for their end. False if there was nothing to end."""
        running = [name for name in self.commands() if self.pid(name) is not None]
        if len(running) == len(self.commands()):
            self.run("scancel", "--partition=debug", check=False)
            _wait(lambda: not self.run("squeue", "--noheader", check=False), patience)
        for name in reversed(running):
            self.stop(name)
        left = sum(self.kill_jobs(node) for node in NODES)  # what ignored SIGTERM, or had lost its slurmd
        return bool(running or left)

    def start(self, name: str) -> None:
        """Start one program."""
        command = self.commands()[name]
        # What a slurmd starts inherits the mark that `kill_jobs` looks for. A pipe as output would stay open for good.
        mark = {"SLURMD_NODENAME": name} if name in NODES else {}
        with open(self.folder / f"{name}.out", "w") as out:
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment | mark, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        if done.returncode != 0 or not _wait(lambda: self.pid(name) is not None, 20):
            raise DataError(f"{name} does not start: {' '.join(command)}\n{self._logs()}")

    def stop(self, name: str, signals: Sequence[int] = (signal.SIGTERM, signal.SIGKILL), timeout: float = 20) -> None:
        """End one program by the first signal that does, and wait for its end."""
        for number in signals:
            if pid := self.pid(name):
                os.kill(pid, number)
                _wait(lambda: self.pid(name) is None, timeout)

    def processes(self, *words: str) -> set[int]:
        """The processes with this cluster and all these words (NAME=value) in their environment."""
        marks = {f"SLURM_CONF={self.conf}", *words}
        return {pid for pid in proc.processes() if marks <= set(proc.words(pid, "environ"))}

    def kill_jobs(self, node: str) -> int:
        """SIGKILL all that runs on a node besides its slurmd, and wait for its end. Returns the number of processes."""
        killed: set[int] = set()
        for _ in range(100):
            # slurmd gives this name to all: shepherds of job steps, batch scripts, tasks. No shell of a person has it.
            left = self.processes(f"SLURMD_NODENAME={node}") - {self.pid(node)}
            if not left:
                return len(killed)
            killed |= left
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise DataError(f"processes of {node} survive SIGKILL: {sorted(left)}")

    def states(self) -> dict[str, str]:
        """The state of each node, as sinfo names it."""
        # Without a controller the question would take long.
        words = self.run("sinfo", "-hN", "-o", "%N %T", check=False).split() if self.pid("slurmctld") else []
        return dict.fromkeys(NODES, "unknown") | dict(zip(words[::2], words[1::2], strict=True))

    def run(self, *words: str, check: bool = True) -> str:
        """The output of a SLURM command on this cluster; a failure is a DataError, or an empty output."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=120)
        if check and done.returncode != 0:
            raise DataError(f"`{' '.join(words)}` left with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _write(self) -> None:
        if len(os.fsencode(self.folder)) > LONGEST_FOLDER:
            raise DataError(f"{self.folder} is too long for sockets in it: choose --dir with <= {LONGEST_FOLDER} bytes")
        if self.folder.exists() and any(self.folder.iterdir()):
            if not self.conf.is_file() or "ClusterName=gm-train" not in self.conf.read_text():
                raise DataError(f"{self.folder} is not empty and not a cluster of this program: choose another --dir")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]  # all open at once, so that they differ
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        names = {"host": socket.gethostname().split(".")[0], "user": pwd.getpwuid(os.geteuid()).pw_name}
        self.conf.write_text(CONFIGURATION.format(**names, folder=self.folder, ports=ports))
        # The files must be devices, different ones, and are in every container; a bare count is taken for none.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        # Newer ones look for cgroups even if no plugin wants them.
        version = self.run(_program("slurmd"), "-V").split()[-1]
        without = "CgroupPlugin=disabled" if tuple(version.split(".")[:2]) >= ("24", "05") else "IgnoreSystemd=yes"
        (self.folder / "cgroup.conf").write_text(f"{without}\n")
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(128))

    def _logs(self, n_lines: int = 12) -> str:
        files = sorted((*self.folder.glob("*.out"), *self.folder.glob("*.log")))
        ends = [(f"the end of {file}:", *file.read_text(errors="replace").splitlines()[-n_lines:]) for file in files]
        return "\n".join("\n  ".join(end) for end in ends if len(end) > 1)


def _wait(met: Callable[[], bool], timeout: float) -> bool:
    end = time.monotonic() + timeout
    while not (done := met()) and time.monotonic() < end:
        time.sleep(0.1)
    return done


def _program(name: str) -> str:
    if found := shutil.which(name, path=PATH):
        return found
    raise DataError(f"{name} is not installed: sudo apt-get install -y --no-install-recommends slurm-wlm munge")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 if it failed or `status` found something missing."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local_slurm", description="SLURM of two nodes, here.")
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--dir", type=Path, default=Path(__file__).parents[1] / ".slurm", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    slurm = LocalSlurm(arguments.dir.resolve())
    try:
        if arguments.command == "down":
            print(f"SLURM in {slurm.folder} {'is down' if slurm.down() else 'was not up'}")
            return 0
        if arguments.command == "up":
            print(f"SLURM in {slurm.folder} {'is up' if slurm.up() else 'was up already'}")
        pids, states = {name: slurm.pid(name) for name in slurm.commands()}, slurm.states()
    except (DataError, PermissionError, KeyError) as error:
        print(f"local_slurm: error: {error}", file=sys.stderr)
        return 1
    for name, pid in pids.items():
        print(f"  {name:10}{f'process {pid}' if pid else 'not running'} {states.get(name, '')}")
    print(f"To use it (`make slurm-down` ends it):\n  export SLURM_CONF={slurm.conf}\n  sinfo")
    return int(None in pids.values())


if __name__ == "__main__":
    sys.exit(main())

"""Run a real SLURM cluster of two nodes on one machine: `python -m cluster.local_slurm up|down|status`.

One munged, one slurmctld and two slurmd (`n1` and `n2`) share 127.0.0.1 on free ports. They write everything into one
folder, by default `.slurm/` (option `--dir`). The cluster needs neither systemd nor a host name that resolves. It runs
as root or as an ordinary user, and then runs only that user's jobs. Each start has an empty queue: job numbers begin
at 1.
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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.workers import proc

NODES = ("n1", "n2")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # the PATH of an ordinary user lacks these
# slurmd keeps a socket per job step in its spool: spool-n1/n1_4294967295.4294967295 must fit into 107 bytes.
LONGEST_FOLDER = 70

# Nothing enforces the CPUs, memory and GPUs of a node: they are listed so that job scripts can request them.
# cred_expire is also the number of seconds that a requeued job waits before it starts again (default: 120).
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
    """A cluster whose files are all in one folder."""

    folder: Path

    @property
    def conf(self) -> Path:
        """The configuration file, to which SLURM_CONF must point."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with this cluster selected and without the variables of any outer job."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return own | {"SLURM_CONF": str(self.conf), "PATH": PATH}

    def commands(self) -> dict[str, tuple[str, ...]]:
        """Return the programs of the cluster in their order of start; each goes into the background by itself."""
        at, conf = self.folder, str(self.conf)
        return {
            "munged": (_program("munged"), "--force", f"--socket={at}/munge.socket", f"--pid-file={at}/munged.pid",
                       f"--key-file={at}/munge.key", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed"),
            "slurmctld": (_program("slurmctld"), "-f", conf),
            **{node: (_program("slurmd"), "-f", conf, "-N", node) for node in NODES},
        }  # fmt: skip

    def pid(self, name: str) -> int | None:
        """Return the process id of a program, or None. Ids are reused, so the command of the process is checked too."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if tuple(proc.words(pid, "cmdline")) == self.commands()[name] else None

    def up(self, timeout: float = 60) -> bool:
        """Start the missing programs and wait until both nodes accept jobs. Return False if none was missing."""
        # If the controller runs, start only what is missing. Otherwise clear away what is left, and start afresh.
        if self.pid("slurmctld") is None:
            self.down()
            self._write()
        missing = [name for name in self.commands() if self.pid(name) is None]
        for name in missing:
            self.start(name)
        unfit = ("unknown", "down", "inval")  # "idle*" is a node that does not answer yet
        if not _wait(lambda: not any(s.startswith(unfit) or s[-1] == "*" for s in self.states().values()), timeout):
            raise DataError(f"the nodes are not up after {timeout:.0f} s: {self.states()}\n{self.logs()}")
        return bool(missing)

    def down(self, patience: float = 10) -> bool:
        """End all jobs, then all programs, and wait for their end. Return False if nothing was running."""
        running = [name for name in self.commands() if self.pid(name) is not None]
        if len(running) == len(self.commands()):
            self.run("scancel", "--partition=debug", check=False)
            _wait(lambda: not self.run("squeue", "--noheader", check=False), patience)
        for name in reversed(running):
            self.stop(name)
        left = sum(self.kill_jobs(node) for node in NODES)  # jobs that ignored SIGTERM or lost their slurmd
        return bool(running or left)

    def start(self, name: str) -> None:
        """Start one program."""
        command = self.commands()[name]
        # All children of a slurmd inherit the mark that `kill_jobs` looks for. Output to a pipe would keep it open.
        mark = {"SLURMD_NODENAME": name} if name in NODES else {}
        with open(self.folder / f"{name}.out", "w") as out:
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment | mark, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        if done.returncode != 0 or not _wait(lambda: self.pid(name) is not None, 20):
            raise DataError(f"{name} does not start: {' '.join(command)}\n{self.logs()}")

    def stop(self, name: str, signals: Sequence[int] = (signal.SIGTERM, signal.SIGKILL), timeout: float = 20) -> None:
        """Send signals to one program until it ends, and wait for that.

        Args:
            name: a key of `commands`.
            signals: signal numbers, sent one after the other while the program runs.
            timeout: seconds to wait after each signal.
        """
        for number in signals:
            if pid := self.pid(name):
                os.kill(pid, number)
                _wait(lambda: self.pid(name) is None, timeout)

    def processes(self, *words: str) -> set[int]:
        """Return the ids of processes with this cluster and all these words (NAME=value) in their environment."""
        marks = {f"SLURM_CONF={self.conf}", *words}
        return {pid for pid in proc.processes() if marks <= set(proc.words(pid, "environ"))}

    def kill_jobs(self, node: str) -> int:
        """Kill all processes of a node except its slurmd, and wait for their end. Return their number.

        They are stopped first: they must end all at once, as on a node without power. Otherwise a batch script could
        still report that its srun was killed, and the job would fail instead of being requeued.
        """
        stopped: set[int] = set()
        while new := self._of_node(node) - stopped:
            _signal(new, signal.SIGSTOP)
            stopped |= new
        _signal(stopped, signal.SIGKILL)
        if not _wait(lambda: not self._of_node(node), 10):
            raise DataError(f"processes of {node} survive SIGKILL: {sorted(self._of_node(node))}")
        return len(stopped)

    def _of_node(self, node: str) -> set[int]:
        # slurmd sets this for all that it starts: slurmstepd, batch scripts, tasks. No user's shell has it.
        return self.processes(f"SLURMD_NODENAME={node}") - {self.pid(node)}

    def states(self) -> dict[str, str]:
        """Return the state of each node as sinfo names it; "unknown" without a controller."""
        # Without a controller, sinfo would wait for a long time.
        words = self.run("sinfo", "-hN", "-o", "%N %T", check=False).split() if self.pid("slurmctld") else []
        return dict.fromkeys(NODES, "unknown") | dict(zip(words[::2], words[1::2], strict=True))

    def run(self, *words: str, check: bool = True) -> str:
        """Run a SLURM command on this cluster and return its output. With `check`, a failure raises DataError."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=120)
        if check and done.returncode != 0:
            raise DataError(f"`{' '.join(words)}` failed with exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _write(self) -> None:
        if len(os.fsencode(self.folder)) > LONGEST_FOLDER:
            raise DataError(f"{self.folder}: too long for sockets in it: choose a --dir of <= {LONGEST_FOLDER} bytes")
        if self.folder.exists() and any(self.folder.iterdir()):
            if not self.conf.is_file() or "ClusterName=gm-train" not in self.conf.read_text():
                raise DataError(f"{self.folder}: not empty, and not a cluster of this program: choose another --dir")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]  # all open at once, so that they differ
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        names = {"host": socket.gethostname().split(".")[0], "user": pwd.getpwuid(os.geteuid()).pw_name}
        self.conf.write_text(CONFIGURATION.format(**names, folder=self.folder, ports=ports))
        # SLURM wants a different device file for each GPU; every container has these. A count alone gives no GPU.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        # Newer versions look for cgroups even if no plugin needs them.
        version = self.run(_program("slurmd"), "-V").split()[-1]
        without = "CgroupPlugin=disabled" if tuple(version.split(".")[:2]) >= ("24", "05") else "IgnoreSystemd=yes"
        (self.folder / "cgroup.conf").write_text(f"{without}\n")
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(128))

    def logs(self, n_lines: int = 12) -> str:
        """Return the last lines of each program's log and output."""
        files = sorted((*self.folder.glob("*.out"), *self.folder.glob("*.log")))
        ends = [(f"the end of {file}:", *file.read_text(errors="replace").splitlines()[-n_lines:]) for file in files]
        return "\n".join("\n  ".join(end) for end in ends if len(end) > 1)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


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
    """Run one command. Return 0, or 1 if it failed or `status` found that a program does not run."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local_slurm", description="Run SLURM with two nodes here.")
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--dir", type=Path, default=Path(__file__).parents[1] / ".slurm", help="folder (%(default)s)")
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

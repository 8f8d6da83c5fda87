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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError

NODES = ("n1", "n2")
PACKAGES = "slurm-wlm munge"
# slurmd keeps a socket per job step in its spool: spool/n1/n1_4294967295.4294967295 must fit into 107 bytes.
LONGEST_FOLDER = 70

# Nothing enforces the CPUs, memory and GPUs of a node: they are there for what job scripts ask for.
# cred_expire is also what a requeued job waits before it starts again (120 seconds by default).
FIRST_LINE = "# Written by cluster.local_slurm, which deletes this folder at its next start."
CONFIGURATION = """\
{first_line}
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=5
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
JobRequeue=1
KillWait=30
PropagateResourceLimits=NONE
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=64000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=64000 Gres=gpu:2
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Daemon:
    """A program of the cluster, how it is started, and where it writes its process id and its log."""

    name: str
    command: tuple[str, ...]
    pid_file: Path
    log: Path

    def pid(self) -> int | None:
        """Its process, if that is alive and really runs this command: process ids are used again."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if tuple(_words(pid, "cmdline")) == self.command else None


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
        return own | {"SLURM_CONF": str(self.conf), "PATH": _path()}

    def daemons(self) -> tuple[Daemon, ...]:
        """All programs of the cluster, in the order in which they start."""
        at = self.folder
        munged = (
            _program("munged"), "--force", f"--socket={at}/munge.socket", f"--key-file={at}/munge.key",
            f"--pid-file={at}/munged.pid", f"--log-file={at}/munged.log", f"--seed-file={at}/munged.seed",
        )  # fmt: skip
        return (
            Daemon("munged", munged, at / "munged.pid", at / "munged.log"),
            Daemon(
                "slurmctld", (_program("slurmctld"), "-f", str(self.conf)), at / "slurmctld.pid", at / "slurmctld.log"
            ),
            *(
                Daemon(
                    node, (_program("slurmd"), "-f", str(self.conf), "-N", node), at / f"{node}.pid", at / f"{node}.log"
                )
                for node in NODES
            ),
        )

    def up(self, timeout: float = 60) -> bool:
        """Start what does not run, and wait until both nodes take jobs. False if all was up already."""
        daemons = self.daemons()
        missing = [daemon for daemon in daemons if daemon.pid() is None]
        # A cluster with its controller alive gets back what it lost; what is left of any other one is cleared away.
        if daemons[1] in missing:
            self.down()
            self._write()
            missing = list(daemons)
        for daemon in missing:
            self.start(daemon)
        try:
            _wait(lambda: set(self.states().values()) <= {"idle", "mixed", "allocated", "completing"}, timeout)
        except TimeoutError:
            raise DataError(f"the nodes are not up after {timeout:.0f} s: {self.states()}\n{self._logs()}") from None
        return bool(missing)

    def down(self, timeout: float = 10) -> bool:
        """End all jobs and all programs of the cluster, and wait for their end. False if there was nothing to end."""
        daemons = self.daemons()
        running = [daemon for daemon in daemons if daemon.pid() is not None]
        if len(running) == len(daemons):
            self.run("scancel", "--user", _user())
            # What ignores SIGTERM is killed below.
            with suppress(TimeoutError):
                _wait(lambda: not self.run("squeue", "--noheader").strip(), timeout)
        for daemon in reversed(running):
            self.stop(daemon)
        left = [pid for node in NODES for pid in self.processes(node)]
        self.kill(left)
        return bool(running or left)

    def start(self, daemon: Daemon) -> None:
        """Start one program; it goes into the background by itself."""
        # What a slurmd starts inherits the mark that `processes` looks for. A pipe as output would stay open for good.
        mark = {"SLURMD_NODENAME": daemon.name} if daemon.name in NODES else {}
        with open(self.folder / f"{daemon.name}.out", "w") as out:
            done = subprocess.run(
                daemon.command, cwd=self.folder, env=self.environment | mark,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False,
            )  # fmt: skip
        try:
            if done.returncode != 0:
                raise TimeoutError
            _wait(lambda: daemon.pid() is not None, 20)
        except TimeoutError:
            raise DataError(f"{daemon.name} does not start: {' '.join(daemon.command)}\n{self._logs()}") from None

    def stop(self, daemon: Daemon, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> None:
        """End one program, with SIGKILL if it does not listen."""
        pid = daemon.pid()
        if pid is None:
            return
        os.kill(pid, number)
        try:
            _wait(lambda: daemon.pid() is None, timeout)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            _wait(lambda: daemon.pid() is None, timeout)

    def processes(self, node: str) -> list[int]:
        """What runs on a node besides its slurmd: the shepherds of job steps, batch scripts, tasks and their children.

        They are known by their environment, which slurmd gave them: no shell of a person has SLURMD_NODENAME.
        """
        slurmd = next(daemon for daemon in self.daemons() if daemon.name == node).pid()
        marks = {f"SLURM_CONF={self.conf}", f"SLURMD_NODENAME={node}"}
        return [pid for pid in _pids() if pid != slurmd and marks <= set(_words(pid, "environ"))]

    def kill(self, pids: Sequence[int], timeout: float = 10) -> None:
        """SIGKILL processes, and wait for their end."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait(lambda: not any(_words(pid, "cmdline") for pid in pids), timeout)

    def states(self) -> dict[str, str]:
        """The state of each node, as sinfo names it (a star: it does not answer)."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
        return dict.fromkeys(NODES, "unknown") | {node: state for node, state in map(str.split, lines)}

    def run(self, *words: str, check: bool = True) -> str:
        """The output of a SLURM command on this cluster; a failure is a DataError, or an empty output."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode != 0:
            raise DataError(f"`{' '.join(words)}` left with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _write(self) -> None:
        if len(os.fsencode(self.folder)) > LONGEST_FOLDER:
            raise DataError(f"{self.folder} is too long for sockets in it: choose --dir with <= {LONGEST_FOLDER} bytes")
        if self.folder.exists() and any(self.folder.iterdir()):
            if not self.conf.is_file() or not self.conf.read_text().startswith(FIRST_LINE):
                raise DataError(f"{self.folder} is not empty and not a cluster of this program: choose another --dir")
            shutil.rmtree(self.folder)
        for name in ("state", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        with ExitStack() as stack:  # held together, so that they differ
            sockets = [stack.enter_context(socket.socket()) for _ in range(1 + len(NODES))]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in sockets]
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(first_line=FIRST_LINE, host=host, user=_user(), folder=self.folder, ports=ports)
        self.conf.write_text(text)
        # The files must be devices, different ones, and are in every container; a bare count is taken for none.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        # Newer ones look for cgroups even if no plugin wants them.
        version = self.run(_program("slurmd"), "-V").split()[-1]
        without = "CgroupPlugin=disabled" if tuple(version.split(".")[:2]) >= ("24", "05") else "IgnoreSystemd=yes"
        (self.folder / "cgroup.conf").write_text(f"{without}\n")
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(128))

    def _logs(self, n_lines: int = 12) -> str:
        parts = []
        for file in sorted((*self.folder.glob("*.out"), *self.folder.glob("*.log"))):
            if lines := file.read_text(errors="replace").splitlines():
                parts.append("\n  ".join([f"the end of {file}:", *lines[-n_lines:]]))
        return "\n".join(parts)


def _wait(met: Callable[[], bool], timeout: float) -> None:
    end = time.monotonic() + timeout
    while not met():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


def _words(pid: int, file: str) -> list[str]:
    # Empty for a process that has ended, and for a zombie: in a container nobody may wait for it.
    try:
        return (Path("/proc") / str(pid) / file).read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _path() -> str:
    # The PATH of an ordinary user lacks the directories of the daemons.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _program(name: str) -> str:
    found = shutil.which(name, path=_path())
    if found is None:
        raise DataError(f"{name} is not installed: sudo apt-get install -y --no-install-recommends {PACKAGES}")
    return found


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise DataError(f"the user id {os.geteuid()} has no name in /etc/passwd: SLURM needs one") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 if it failed or `status` found something missing."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local_slurm", description="SLURM of two nodes, here.")
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--dir", type=Path, default=Path(__file__).parents[1] / ".slurm", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    slurm = LocalSlurm(arguments.dir.resolve())
    try:
        return _command(arguments.command, slurm)
    except (DataError, PermissionError) as error:
        print(f"local_slurm: error: {error}", file=sys.stderr)
        return 1


def _command(command: str, slurm: LocalSlurm) -> int:
    if command == "down":
        print(f"SLURM in {slurm.folder} {'is down' if slurm.down() else 'was not up'}")
        return 0
    if command == "up":
        print(f"SLURM in {slurm.folder} {'is up' if slurm.up() else 'was up already'}")
    for daemon in slurm.daemons():
        print(f"  {daemon.name:10}process {daemon.pid() or '-'}")
    if any(daemon.pid() is None for daemon in slurm.daemons()):
        print("make slurm starts what is missing")
        return 1
    print(f"To use it, `make slurm-down` ends it:\n  export SLURM_CONF={slurm.conf}\n  sinfo")
    return 0


if __name__ == "__main__":
    sys.exit(main())

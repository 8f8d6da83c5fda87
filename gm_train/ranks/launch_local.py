"""Several ranks on one machine, started and watched by `gm-train` itself, without torch in the watching process."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from data_shards.errors import DataError

_PARENT = "GM_TRAIN_PARENT"
_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
_PATIENCE_S = 10.0  # for ranks to end by themselves after one of them failed
PREEMPTED = 85
#: Of schedulers: the run is to be started again.
PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1)
#: What asks a run to leave.
SIGNALS = (*PREEMPTIONS, signal.SIGINT)


class OtherRankFailed(DataError):
    """Another rank failed, and has said why."""


def is_launched() -> bool:
    """Whether this process was started as a rank: by srun with several tasks, by torchrun, or by `run_ranks`.

    In a batch script or an interactive shell of an allocation SLURM's variables are set as well, but those of a step
    are not, or name one task.
    """
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys() or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def is_first() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not is_launched() or int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(words: list[str], n_ranks: int) -> int:
    """Run `gm-train WORDS` as `n_ranks` ranks of this machine.

    Signals that ask to leave are passed on, so that the ranks can agree, save and leave. When a rank fails, the others
    are ended, too.

    Returns:
        0 if every rank returned 0, 85 if they were told to leave and saved, otherwise the code of one that failed: 128
        and the signal for one that was killed.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // n_ranks)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        _PARENT: str(os.getpid()),
    }
    command = [sys.executable, "-m", "gm_train.cli", *words]
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        # Until a rank has handlers of its own, signals wait: they neither end it nor get lost.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for rank in range(n_ranks):
            env = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of its own: a terminal would send Ctrl-C to the ranks a second time.
            processes.append(subprocess.Popen(command, env=env, start_new_session=True))
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        return _watch(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; after a failure, end the ones that go on. Returns the code of the whole."""
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if deadline is None and any(process.returncode not in (None, 0, PREEMPTED) for process in processes):
            deadline = time.monotonic() + _PATIENCE_S
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    process.wait()
                    process.returncode = 1  # not what has failed
    codes = [process.returncode for process in processes]
    killed = [code for code in codes if code < 0]
    if killed:
        # The others failed for want of this one.
        return 128 - killed[0]
    return max(codes, key=lambda code: (code not in (0, PREEMPTED), code))


def follow_parent() -> None:
    """What a rank that was started by `run_ranks` does once it handles signals: it takes those that wait.

    It ends when that process is gone, even by kill -9. Nothing in other processes.
    """
    parent = os.environ.get(_PARENT)
    if parent is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os._exit(1)

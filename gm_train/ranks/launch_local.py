"""Start and watch several ranks on one machine. The watching process does not import torch."""

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

#: Variable with the number of the process that a child follows, see `follow_parent`.
PARENT = "GM_TRAIN_PARENT"
_PR_SET_PDEATHSIG = 1  # from Linux's <sys/prctl.h>
_PATIENCE_S = 10.0  # how long ranks may take to end by themselves after one of them failed
#: Exit code of a run that was asked to leave and has saved its state.
PREEMPTED = 85
#: Sent by schedulers, which expect to start the run again.
PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1)
#: All signals that ask a run to leave.
SIGNALS = (*PREEMPTIONS, signal.SIGINT)


class OtherRankFailed(DataError):
    """Another rank failed. That rank reports the reason, so this one need not."""


def is_launched() -> bool:
    """Whether this process was started as a rank: by srun with several tasks, by torchrun, or by `run_ranks`.

    SLURM also sets variables in batch scripts and in interactive shells of an allocation. There the variables of a step
    (`SLURM_STEP_…`) are missing, or the step has one task.
    """
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys() or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def is_first() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not is_launched() or int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def free_port() -> int:
    """Return a TCP port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(words: list[str], n_ranks: int) -> int:
    """Run `gm-train WORDS` as `n_ranks` ranks of this machine.

    Signals that ask to leave are passed on, so that the ranks can agree, save and leave. When a rank fails, the others
    are ended as well.

    Returns:
        0 if every rank returned 0; 85 if they were asked to leave and have saved; otherwise the exit code of a rank
        that failed, which is 128 + the number of the signal if it was killed.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // n_ranks)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(n_ranks),
        "LOCAL_WORLD_SIZE": str(n_ranks),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        PARENT: str(os.getpid()),
    }
    command = [sys.executable, "-m", "gm_train.cli", *words]
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        # Ranks start with the signals blocked, and unblock them once they have handlers: until then a signal neither
        # ends a rank nor gets lost.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for rank in range(n_ranks):
            env = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of its own. Otherwise the terminal would send Ctrl-C to the ranks as well, a second time.
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
    """Wait for all ranks; after a failure, kill those that do not end. Returns the exit code of the run."""
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
                    process.returncode = 1  # killed here, so not the rank that failed first
    codes = [process.returncode for process in processes]
    killed = [code for code in codes if code < 0]
    if killed:
        # The other ranks failed only because they lost this one.
        return 128 - killed[0]
    return max(codes, key=lambda code: (code not in (0, PREEMPTED), code))


def follow_parent() -> None:
    """In a child of `run_ranks` or of `gm-train ablate`: receive pending signals, and end together with the parent.

    To be called once the child handles signals, if it does. It is killed when its parent ends, even by kill -9. In
    processes whose parent does not set `PARENT`, this does nothing.
    """
    parent = os.environ.get(PARENT)
    if parent is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os._exit(1)

"""`gm-train doctor` on two ranks, in processes from the fork server of `training_runs.py`; one may go wrong."""

import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gm_train.ranks.launch_local import free_port
from tests.support.training_runs import CONTEXT


def _go_wrong(weird: str) -> None:
    """Make this rank fail in the way that `weird` names."""
    from cluster.doctor import check_machine, check_network, examine

    if weird == "dies":
        examine.check_store = lambda *rest: os._exit(9)
    elif weird == "dies before":
        os._exit(9)
    elif weird == "sleeps":
        check_network.measure = lambda *rest: time.sleep(600)
    elif weird == "miscounts":
        measure: Any = check_network.measure
        check_network.measure = lambda device, n_bytes, rank, size: measure(device, n_bytes, 5, size)
    elif weird == "old":
        versions = check_machine.versions
        check_machine.versions = lambda: versions() | {"torch": "1.0"}


def _doctor(words: list[str], rank: int, weird: str, env: dict[str, str], out: str, err: str) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_"))]:
        del os.environ[name]
    os.environ.update(env | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    from cluster.doctor import check_network
    from gm_train.cli.main import main

    if rank == 1 and weird:
        _go_wrong(weird)
    if weird == "sleeps":
        check_network._PATIENCE_S = 3.0
    code = main(["doctor", *(word.replace("{rank}", str(rank)) for word in words)])
    sys.stdout.flush()
    os._exit(code)


def run_doctor(folder: Path, *words: str, weird: str = "") -> tuple[list[int | None], str, str]:
    """Run the doctor on two ranks.

    Args:
        folder: takes what the ranks print.
        words: arguments of `gm-train doctor`; `{rank}` stands for the rank's number.
        weird: what goes wrong on rank 1.

    Returns:
        Exit codes, standard output and standard error of both.
    """
    env = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [*words, "--timeout=5" if weird == "dies before" else "--timeout=60"]
    out, err = ([folder / f"{rank}.{kind}" for rank in range(2)] for kind in ("out", "err"))
    processes: list[BaseProcess] = []
    for rank in range(2):
        arguments = command, rank, weird, env, str(out[rank]), str(err[rank])
        processes.append(CONTEXT.Process(target=_doctor, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join(180)
        process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    return codes, *("".join(path.read_text() for path in paths) for paths in (out, err))  # type: ignore[return-value]

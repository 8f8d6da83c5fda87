"""Run all checks of `gm-train doctor` in order, and make one report: what this machine or allocation can run.

    ranks meet ─> which ranks ─> software and devices ─> needs of the run ─> all-reduce of gradients

Every rank runs all of this; rank 0 prints. `cluster/doctor/checkup.py` says what a check is, and why none deadlocks.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from cluster.doctor.check_data import check_pathways, check_store
from cluster.doctor.check_device import check_device
from cluster.doctor.check_job import check_job, check_tools
from cluster.doctor.check_kernel import check_kernel
from cluster.doctor.check_machine import check_cores, check_software, check_strategies
from cluster.doctor.check_memory import check_memory
from cluster.doctor.check_network import MOST_ON_GPU, check_all_reduce
from cluster.doctor.check_run_dir import check_run_dir, check_space, check_strategy, model_size
from cluster.doctor.checkup import Answer, Checkup, Level, Lost, Problems, groups, node_name, spans
from cluster.launch_problems import ranks_per_node
from data_shards.errors import DataError
from gm_train.config.check import rank_problems
from gm_train.config.schema import Config
from gm_train.ranks.ranks import Ranks, joined, launched

_MOST_HOSTS = 64  # lines of the table at most


def examine(config: Config | None, timeout_s: float) -> int:
    """Check what these ranks have, and whether it is enough for a run; rank 0 prints the report.

    Args:
        config: configuration of the run, as `load_config` returns it; None reports only what the ranks have.
        timeout_s: how long ranks wait for each other, in seconds.

    Returns:
        The exit code: 0 if nothing failed, else 1. It is the same on every rank that is still connected.
    """
    ranks = launched() or Ranks()
    from_slurm = _meet_as_slurm_says()
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(joined(ranks, alone=False, timeout=timedelta(seconds=timeout_s)))
        except DataError as error:
            return _examine_alone(ranks, config, error, timeout_s)
        checkup = Checkup(ranks)
        free = True
        try:
            if ranks.world_size > 1:
                _check_rendezvous(checkup, time.monotonic() - start, from_slurm)
            free = _examine(checkup, config)
        except Lost as error:
            text = f"another rank is gone ({error}): the end of its own log says why"
            checkup.say(Level.FAIL, "ranks", text)
            if not ranks.is_first:  # rank 0 may be the one that is gone
                print(f"FAIL  ranks        rank {ranks.global_rank} on {node_name()}: {text}", file=sys.stderr)
        code = _conclude(checkup, config)
        if not free:
            # A thread is stuck in a collective: leaving the process group would wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _examine(checkup: Checkup, config: Config | None) -> bool:
    """Run all checks after the rendezvous. Return whether the process may exit normally."""
    check_ranks(checkup, config)
    checkup.check("software", lambda: check_software(checkup))
    checkup.check("device", lambda: check_device(checkup, config))
    checkup.check("kernel", lambda: check_kernel(checkup, config))
    checkup.check("cores", lambda: check_cores(checkup, config))
    gradient_bytes = MOST_ON_GPU
    if config is None:
        checkup.check("strategies", lambda: check_strategies(checkup))
        checkup.check("slurm", lambda: check_tools(checkup))
    else:
        size = checkup.ask("model", lambda: model_size(config))
        if size is not None:
            first = size[0].value
            gradient_bytes = 4 * first.n_parameters
            checkup.check("strategy", lambda: check_strategy(checkup, config, first))
            checkup.check("memory", lambda: check_memory(checkup, config))
            checkup.check("space", lambda: check_space(checkup, config, first))
        checkup.check("run dir", lambda: check_run_dir(checkup, config))
        checkup.check("store", lambda: check_store(checkup, config))
        checkup.check("pathways", lambda: check_pathways(checkup, config))
    checkup.check("job", lambda: check_job(checkup, config))
    free = True
    if checkup.connected and checkup.ranks.world_size > 1:

        def all_reduce() -> None:
            nonlocal free
            free = check_all_reduce(checkup, gradient_bytes)

        checkup.check("all-reduce", all_reduce)
    return free


def _examine_alone(ranks: Ranks, config: Config | None, error: DataError, timeout_s: float) -> int:
    """Report that the ranks did not meet: each that did start prints a line. Rank 0 checks what it can alone."""
    why = str(error.__cause__ or error).splitlines()[0]
    text = (
        f"rank {ranks.global_rank} of {ranks.world_size} on {node_name()}, {_meeting_place()}: {why} (--timeout "
        f"{timeout_s:g}): were all ranks started, can every node reach that address, is that port free? Ranks without "
        "such a line did not start; GLOO_SOCKET_IFNAME names the network interface to use"
    )
    if not ranks.is_first:
        print(f"FAIL  rendezvous   {text}", file=sys.stderr)
        return 1
    checkup = Checkup(ranks, connected=False)
    checkup.say(Level.FAIL, "rendezvous", f"{text}. The checks below are of rank 0 alone")
    _examine(checkup, config)
    return _conclude(checkup, config)


def _conclude(checkup: Checkup, config: Config | None) -> int:
    if checkup.ranks.is_first:
        counts = ", ".join(f"{n} {level.value}" for level, n in checkup.counts.items())
        more = "; `gm-train doctor CONFIG.yaml` checks what a run of it needs" if config is None else ""
        print(f"{counts}{more}", flush=True)
    return 1 if checkup.failed else 0


def _meet_as_slurm_says() -> bool:
    """Under plain srun, which sets no address for the rendezvous, set one as `gm-train launch` does. Return if done."""
    env = os.environ
    if "MASTER_ADDR" in env or "RANK" in env or int(env.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return False

    def scontrol(*words: str) -> str:
        return subprocess.run(["scontrol", "show", *words], capture_output=True, text=True, timeout=60).stdout

    try:
        first = scontrol("hostnames", env["SLURM_STEP_NODELIST"]).split()[0]
        address = re.search(r"\bNodeAddr=(\S+)", scontrol("node", "--oneliner", first))
    except (OSError, KeyError, IndexError, subprocess.SubprocessError):
        return False  # the rendezvous will fail and report that MASTER_ADDR is missing
    env["MASTER_ADDR"] = address[1] if address else first
    # Other ports than those of `gm-train launch`, so that a run in the same job is not disturbed.
    env.setdefault("MASTER_PORT", str(10000 + int(env["SLURM_JOB_ID"]) % 1000 * 10 + int(env["SLURM_STEP_ID"]) % 10))
    return True


def _meeting_place() -> str:
    return f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, MASTER_PORT={os.environ.get('MASTER_PORT')}"


def _check_rendezvous(checkup: Checkup, seconds: float, from_slurm: bool) -> None:
    answers = checkup.ask("rendezvous", lambda: seconds)
    if answers is None:
        return
    waits = [one.value for one in answers]
    remark = " (from SLURM: set both for a `gm-train fit` under srun; the scripts of `gm-train launch` do)"
    checkup.conclude(
        "rendezvous",
        f"{min(waits):.2f} s after the last rank started, {max(waits):.2f} s after the first; {_meeting_place()}"
        + (remark if from_slurm else ""),
        [],
    )


def check_ranks(checkup: Checkup, config: Config | None) -> None:
    """Report the ranks and their nodes, and whether their number is what the configuration expects."""
    ranks = checkup.ranks
    answers = checkup.ask("ranks", lambda: ranks.local_rank)
    if answers is None:
        return
    nodes = groups([Answer(one.rank, one.node, one.node) for one in answers])
    table = [(node, spans([one.rank for one in who])) for node, who in nodes.items()]
    if not checkup.connected:
        measured = f"{ranks.world_size} started"
    elif len(nodes) == 1:
        measured = f"{ranks.world_size} on 1 node: {table[0][0]} {table[0][1]}"
    else:
        measured = f"{ranks.world_size} on {len(nodes)} nodes"
    problems = layout_problems(answers, ranks) if checkup.connected else []
    if config is not None:
        problems += count_problems(config, ranks, "SLURM_JOB_ID" in os.environ)
    checkup.conclude("ranks", measured, problems)
    if len(nodes) > 1:
        lines = [f"{node}  {held}" for node, held in table[:_MOST_HOSTS]]
        lines += [f"and {len(table) - _MOST_HOSTS} more"] if len(table) > _MOST_HOSTS else []
        checkup.conclude("hosts", "\n".join(lines), [])


def layout_problems(answers: Sequence[Answer[int]], ranks: Ranks) -> Problems:
    """List violations of the layout: every node must have the same number of ranks, and consecutive ones.

    Args:
        answers: the local rank of every rank.
        ranks: the ranks that were started.
    """
    counts = {node: len(who) for node, who in groups([Answer(one.rank, one.node, one.node) for one in answers]).items()}
    # If a pair of node name and local rank occurs twice, several containers have the same host name: no check then.
    distinct = len({(one.node, one.value) for one in answers}) == len(answers)
    if distinct and len(set(counts.values())) > 1:
        text = ", ".join(f"{n} on {node}" for node, n in counts.items())
        return [(Level.FAIL, f"every node needs the same number of ranks, not {text}: use --ntasks-per-node")]
    if any(one.value != one.rank % ranks.local_size for one in answers):
        text = "the ranks of a node are not consecutive, so neighbours communicate over the network"
        return [(Level.WARN, f"{text}: use srun --distribution=block")]
    return []


def count_problems(config: Config, ranks: Ranks, in_job: bool) -> Problems:
    """List where the number of ranks is not what the configuration says or can use.

    Args:
        config: the configuration of the run.
        ranks: the ranks that were started.
        in_job: whether this process runs in a SLURM job.
    """
    trainer, cluster = config.trainer, config.cluster
    started = f"{ranks.local_size} on each of {ranks.n_nodes} node{'s' if ranks.n_nodes > 1 else ''} were started"
    problems: Problems = []
    if trainer.devices not in (None, ranks.local_size) or trainer.num_nodes not in (None, ranks.n_nodes):
        expected = f"trainer.devices={trainer.devices}, trainer.num_nodes={trainer.num_nodes}"
        problems.append((Level.FAIL, f"{expected}, but {started}: set both to what is started, or leave them out"))
    if in_job and cluster.nodes * ranks_per_node(config) != ranks.world_size:
        key = "gpus_per_node" if cluster.gpus_per_node else "tasks_per_node"
        expected = f"cluster.nodes={cluster.nodes} x cluster.{key}={ranks_per_node(config)}"
        text = f"`gm-train launch` would start {expected} = {cluster.nodes * ranks_per_node(config)} ranks"
        problems.append((Level.WARN, f"{text}, but {ranks.world_size} were started: start doctor as the run will be"))
    return problems + [(Level.FAIL, problem) for problem in rank_problems(config, ranks.world_size)]

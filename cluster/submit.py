"""A launch, from its script to a job in the queue: look, check, write, submit."""

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import OmegaConf

from cluster.batch_script import LAUNCHES
from cluster.sbatch_options import LOGS
from data_shards.errors import DataError
from data_shards.files.atomic import whole_directory
from gm_train.config.schema import Config
from gm_train.run.provenance import git_revision, packages

SCRIPT, JOB_ID = "job.sh", "job_id"

# What SLURM says when it cannot start a job, in small letters, and the settings behind it.
_HINTS = {
    "invalid partition": "cluster.partition: `sinfo -s` lists the partitions",
    "invalid account": "cluster.account and cluster.partition: `sacctmgr show assoc user=$USER` lists what you may use",
    "invalid qos": "cluster.qos: `sacctmgr show assoc user=$USER format=account,partition,qos` lists what you may use",
    "time limit": "cluster.time: `sinfo -o '%P %l'` lists the longest times",
    "generic resource": "cluster.gpus_per_node, cluster.gpu_type, cluster.gpu_request: `sinfo -o '%P %G'` lists GPUs",
    "feature": "cluster.constraint: `sinfo -o '%P %f'` lists the features of nodes",
    "node name": "cluster.exclude: `sinfo -N` lists the nodes",
    "node count": "cluster.nodes: `sinfo -o '%P %D'` lists the numbers of nodes",
    "memory": "cluster.memory: `sinfo -o '%P %m'` lists the memory of nodes, in MiB",
    "node configuration": "cluster.nodes, cluster.gpus_per_node, cluster.cpus_per_task (of a rank) and cluster.memory: "
    "`sinfo -o '%P %D %c %m %G'` lists numbers of nodes, and cores, memory (MiB) and GPUs of a node; `sinfo -R` lists "
    "nodes that are down, which count as not there",
    "unrecognized option": "cluster.sbatch: `man sbatch` lists the options",
    "contact": "the controller does not answer: `scontrol ping`",
    "configuration source": "no SLURM is set up here: is this a login node? After `make slurm`: `export SLURM_CONF=…`",
}


class QueueUnknown(DataError):
    """SLURM did not say what is in its queue."""


def next_number(run_dir: Path) -> int:
    """The number of the next launch of a run, from 1."""
    taken = [int(found.name) for found in (run_dir / LAUNCHES).glob("*") if found.name.isdecimal()]
    return max(taken, default=0) + 1


def warnings(config: Config) -> list[str]:
    """What in a resolved configuration may be meant, but is often a mistake."""
    found = []
    run_dir = Path(config.run.dir).resolve()
    if any(run_dir.is_relative_to(local) for local in ("/tmp", "/var/tmp", "/dev/shm")):
        found.append(f"run.dir={run_dir}: usually a node has its own; the ranks need a folder that all nodes share")
    for key, path in (("data.store", config.data.store), ("objective.pathways", config.objective.pathways)):
        if path and "://" not in path and not Path(path).exists():
            found.append(f"{key}={path}: is not there, seen from this machine")
    if config.cluster.prefix and not config.cluster.python:
        found.append(
            "cluster.prefix is set and cluster.python is not: the ranks look for this machine's interpreter behind it; "
            "for a container name its own, such as cluster.python=python3"
        )
    overruling = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    if overruling:
        found.append(f"{', '.join(overruling)}: set in this shell, and stronger than the lines of the script")
    return found


def refuse_second_job(run_dir: Path) -> None:
    """Two jobs must not train into one run directory.

    Raises:
        DataError: there is no SLURM here, or an earlier launch of the run is still in the queue.
    """
    if shutil.which("sbatch") is None:
        raise DataError(
            "sbatch: not found: launch from a login node of the cluster, or only see the script with "
            "`gm-train launch --dry-run`"
        )
    refuse_job_in_queue(run_dir)


def refuse_job_in_queue(run_dir: Path) -> None:
    """Raise DataError if an earlier launch of the run is still in the queue.

    Raises:
        DataError: it is.
        QueueUnknown: SLURM does not tell.
    """
    jobs = {file.read_text().strip(): file.parent / SCRIPT for file in (run_dir / LAUNCHES).glob(f"*/{JOB_ID}")}
    if not jobs:
        return
    # A controller whose memory was lost counts from 1 again: the script tells whether the job is still the same.
    done = run_slurm("squeue", "--noheader", f"--jobs={','.join(jobs)}", "--format=%i %T %o")
    if done.returncode and "invalid job id" not in done.stderr.lower():
        raise QueueUnknown(f"squeue: cannot tell whether an earlier job of {run_dir} still runs: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        job, state, script = (*line.split(maxsplit=2), "", "", "")[:3]
        if job in jobs and script == str(jobs[job]):
            raise DataError(
                f"run.dir={run_dir}: job {job} trains into it already ({state.lower()}): wait for it, end it with "
                f"`scancel {job}` (it saves, if half a minute is enough), or choose another run.dir"
            )


def check_launch(script: str) -> str:
    """Ask SLURM whether it could run a script, and when; nothing is submitted.

    Raises:
        DataError: it could not; with SLURM's words and the settings to look at.
    """
    done = run_slurm("sbatch", "--test-only", stdin=script)
    words = done.stderr.strip()
    if done.returncode:
        hints = [f"\n  look at {hint}" for sign, hint in _HINTS.items() if sign in words.lower()]
        raise DataError(f"SLURM would not take this job:\n  {words.replace(chr(10), chr(10) + '  ')}{''.join(hints)}")
    return words.removeprefix("sbatch: ")


def write_launch(launch: Path, config: Config, script: str, words: list[str]) -> None:
    """Write what a launch consists of, as a whole, and the folder of the logs, which SLURM does not make.

    Raises:
        DataError: the place cannot be written to, or another launch took the number.
    """
    environment = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "words": words,
        "git": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
    }
    with whole_directory(launch) as folder:
        (folder / SCRIPT).write_text(script)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        (folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
        (Path(config.run.dir) / LOGS).mkdir(exist_ok=True)


def submit(launch: Path) -> str:
    """Put a written launch into the queue, and note the job's number beside it. Returns the number.

    Raises:
        DataError: SLURM refused it.
    """
    done = run_slurm("sbatch", "--parsable", str(launch / SCRIPT))
    if done.returncode:
        raise DataError(f"{launch / SCRIPT}: SLURM refused it after the check: {done.stderr.strip()}")
    # On a federation of clusters the name of one stands behind the number.
    job = done.stdout.strip().split(";")[0]
    (launch / JOB_ID).write_text(f"{job}\n")
    return job


def run_slurm(*words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command of SLURM as from a shell outside of any job, whose variables srun in the new job would believe."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SRUN_")) or name.startswith("SLURM_CONF")
    }
    try:
        return subprocess.run(words, env=environment, input=stdin, capture_output=True, text=True, check=False)
    except OSError as error:
        raise QueueUnknown(f"{words[0]}: cannot be run ({error.strerror})") from error

"""Submit a launch: warn about settings, let SLURM check the script, write the launch's folder, submit the job."""

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import OmegaConf

from cluster.batch_script import LAUNCHES
from cluster.launch_problems import ranks_per_node
from cluster.sbatch_options import LOGS
from data_shards.errors import DataError
from data_shards.files.atomic import whole_directory
from gm_train.config.micro_rows import few_tokens
from gm_train.config.schema import Config
from gm_train.run.provenance import git_revision, packages

SCRIPT, JOB_ID = "job.sh", "job_id"

# Parts of SLURM's messages (in lower case) when it refuses a job, and the settings to look at.
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
    "nodes that are down, which do not count",
    "unrecognized option": "cluster.sbatch: `man sbatch` lists the options",
    "contact": "the controller does not answer: `scontrol ping`",
    "configuration source": "no SLURM is set up here: is this a login node? After `make slurm`: `export SLURM_CONF=…`",
}


class QueueUnknown(DataError):
    """SLURM could not be asked what is in its queue."""


def next_number(run_dir: Path) -> int:
    """Return the number of the next launch of a run, from 1."""
    taken = [int(path.name) for path in (run_dir / LAUNCHES).glob("*") if path.name.isdecimal()]
    return max(taken, default=0) + 1


def warnings(config: Config) -> list[str]:
    """List settings of a resolved configuration that may be intended but are often mistakes."""
    texts = []
    run_dir = Path(config.run.dir).resolve()
    if any(run_dir.is_relative_to(local) for local in ("/tmp", "/var/tmp", "/dev/shm")):
        texts.append(f"run.dir={run_dir}: usually local to each node; the ranks need a folder that all nodes share")
    for key, path in (("data.store", config.data.store), ("objective.pathways", config.objective.pathways)):
        if path and "://" not in path and not Path(path).exists():
            texts.append(f"{key}={path}: does not exist on this machine")
    if config.cluster.prefix and not config.cluster.python:
        texts.append(
            "cluster.prefix is set and cluster.python is not: the prefix starts this machine's interpreter; "
            "if the prefix starts a container, name its own interpreter, such as cluster.python=python3"
        )
    if any(entry.startswith("--container-image") for entry in config.cluster.srun) and not config.cluster.python:
        texts.append(
            "cluster.srun starts the ranks in a container and cluster.python is not set: name the image's own "
            "interpreter, such as cluster.python=python3"
        )
    if config.cluster.gpus_per_node and (few := few_tokens(config, config.cluster.nodes * ranks_per_node(config))):
        texts.append(few)
    overruling = sorted(name for name in os.environ if name.startswith("SBATCH_"))
    if overruling:
        texts.append(f"{', '.join(overruling)}: set in this shell; they override the #SBATCH lines of the script")
    return texts


def refuse_second_job(run_dir: Path) -> None:
    """Refuse a launch without SLURM, or while another job of the run is in the queue.

    Raises:
        DataError: SLURM is not installed here, or an earlier launch of the run is still in the queue.
    """
    if shutil.which("sbatch") is None:
        raise DataError(
            "sbatch: not found: launch from a login node of the cluster, or only print the script "
            "with `gm-train launch --dry-run`"
        )
    refuse_job_in_queue(run_dir)


def refuse_job_in_queue(run_dir: Path) -> None:
    """Raise DataError if an earlier launch of the run is still in the queue.

    Raises:
        DataError: an earlier launch still waits or runs.
        QueueUnknown: SLURM does not say whether one does.
    """
    jobs = {file.read_text().strip(): file.parent / SCRIPT for file in (run_dir / LAUNCHES).glob(f"*/{JOB_ID}")}
    if not jobs:
        return
    # A controller that lost its state numbers jobs from 1 again: compare the script to know that it is the same job.
    done = run_slurm("squeue", "--noheader", f"--jobs={','.join(jobs)}", "--format=%i %T %o")
    if done.returncode and "invalid job id" not in done.stderr.lower():
        raise QueueUnknown(f"squeue: cannot tell whether an earlier job of {run_dir} still runs: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        job, state, script = (*line.split(maxsplit=2), "", "", "")[:3]
        if job in jobs and script == str(jobs[job]):
            raise DataError(
                f"run.dir={run_dir}: job {job} trains into it already ({state.lower()}): wait for it, end it with "
                f"`scancel {job}` (it saves first, if it can do so in half a minute), or choose another run.dir"
            )


def check_launch(script: str) -> str:
    """Ask SLURM whether and when it could run a script, and return its answer. Nothing is submitted.

    Raises:
        DataError: SLURM would refuse it; the message has SLURM's reason and the settings to look at.
    """
    done = run_slurm("sbatch", "--test-only", stdin=script)
    words = done.stderr.strip()
    if done.returncode:
        hints = [f"\n  look at {hint}" for sign, hint in _HINTS.items() if sign in words.lower()]
        raise DataError(f"SLURM would not take this job:\n  {words.replace(chr(10), chr(10) + '  ')}{''.join(hints)}")
    return words.removeprefix("sbatch: ")


def write_launch(launch: Path, config: Config, script: str, words: list[str]) -> None:
    """Write the folder of a launch, all or nothing, and make the folder of the logs, which SLURM does not make.

    Args:
        launch: the folder, as `launch_dir` returns it.
        config: the configuration for the ranks, as `resolved` returns it.
        script: the batch script.
        words: the command line's words, for the record.

    Raises:
        DataError: the folder cannot be written, or another launch took the number.
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
    """Submit a written launch, and save the job's number in its folder. Return the number.

    Raises:
        DataError: SLURM refused the job.
    """
    done = run_slurm("sbatch", "--parsable", str(launch / SCRIPT))
    if done.returncode:
        raise DataError(f"{launch / SCRIPT}: SLURM refused it after the check: {done.stderr.strip()}")
    # In a federation of clusters, the cluster's name follows the number.
    job = done.stdout.strip().split(";")[0]
    (launch / JOB_ID).write_text(f"{job}\n")
    return job


def run_slurm(*words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a SLURM command without the variables of an outer job, which srun in the new job would take for its own."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SRUN_")) or name.startswith("SLURM_CONF")
    }
    try:
        return subprocess.run(words, env=environment, input=stdin, capture_output=True, text=True, check=False)
    except OSError as error:
        raise QueueUnknown(f"{words[0]}: cannot be run ({error.strerror})") from error

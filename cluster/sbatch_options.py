"""What a job asks SLURM for: the #SBATCH lines of a batch script.

sbatch reads them much as a shell would: quotes hold a word together, and a backslash is dropped.
"""

import shlex
from pathlib import Path

from cluster.launch_problems import ranks_per_node
from gm_train.config.schema import ClusterConfig, Config

#: Folder of a run directory: what batch scripts and ranks print.
LOGS = "logs"


def sbatch_lines(config: Config) -> str:
    """The #SBATCH lines, for a configuration as `resolved` returns it."""
    cluster = config.cluster
    gpu_type = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    gpus = "--gres=gpu:" if cluster.gpu_request == "gres" else "--gpus-per-node="
    options = [
        f"--job-name={shlex.quote(cluster.job_name or Path(config.run.dir).name)}",
        *site_options(cluster),
        f"--nodes={cluster.nodes}",
        f"--ntasks-per-node={ranks_per_node(config)}",
        f"--cpus-per-task={cluster.cpus_per_task}",
        *([f"{gpus}{gpu_type}{cluster.gpus_per_node}"] if cluster.gpus_per_node else []),
        *([f"--mem={cluster.memory}"] if cluster.memory else []),
        f"--time={cluster.time}",
        *cluster.sbatch,
    ]
    if cluster.requeue:
        requeue = (
            "# A job that is preempted or loses a node goes back into the queue under its number.\n#SBATCH --requeue"
        )
    else:
        requeue = (
            "# cluster.requeue=false: what ends early stays ended, until it is launched again.\n#SBATCH --no-requeue"
        )
    lines = "\n".join(f"#SBATCH {option}" for option in options)
    return f"""\
{lines}
# USR1 comes this many seconds before the time limit, or up to a minute earlier. Without "B:" it goes to the ranks,
# not to this script: they agree on a step, save and leave.
#SBATCH --signal=USR1@{cluster.signal_seconds}
{requeue}
# This script's own lines, those of its later starts below them. %j is the number of the job.
#SBATCH --output={shlex.quote(f"{log_pattern(config)}/%j-batch.out")}
#SBATCH --open-mode=append
"""


def site_options(cluster: ClusterConfig) -> list[str]:
    """The options that say where, and on whose account, a job runs."""
    return [
        f"--{key}={shlex.quote(getattr(cluster, key))}"
        for key in ("partition", "account", "qos", "constraint", "exclude")
        if getattr(cluster, key)
    ]


def log_pattern(config: Config) -> str:
    """The folder of the logs, for a file name in which SLURM replaces %j and its like."""
    return f"{config.run.dir}/{LOGS}".replace("%", "%%")

"""What a job asks SLURM for: the #SBATCH lines of a batch script.

sbatch parses them much like a shell: quotes group words, and a backslash is dropped.
"""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster.launch_problems import ranks_per_node
from gm_train.config.schema import ClusterConfig, Config

#: Subfolder of a run directory with the output of batch scripts and ranks.
LOGS = "logs"
#: Settings that choose where a job runs, and on whose account; sbatch has options of the same names.
SITE = ("partition", "account", "qos", "constraint", "exclude")


def _site_option(key: str, cluster: ClusterConfig) -> str:
    value = getattr(cluster, key)
    return f"--{key}={shlex.quote(value)}" if value else ""


def site_options(cluster: ClusterConfig) -> list[str]:
    """Return the options that choose where a job runs, and on whose account."""
    return [text for key in SITE if (text := _site_option(key, cluster))]


def _of_site(key: str, config: Config) -> str:
    return _site_option(key, config.cluster)


def _gpus(config: Config) -> str:
    """Return the option that requests GPUs, in the site's notation; empty for ranks without GPUs."""
    cluster = config.cluster
    if not cluster.gpus_per_node:
        return ""
    kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    return ("--gres=gpu:" if cluster.gpu_request == "gres" else "--gpus-per-node=") + f"{kind}{cluster.gpus_per_node}"


#: The options of a job, each from the configuration; an empty one is left out. To add one, list it here, and its
#: setting in `ClusterConfig`.
OPTIONS: tuple[Callable[[Config], str], ...] = (
    lambda config: f"--job-name={shlex.quote(config.cluster.job_name or Path(config.run.dir).name)}",
    *(partial(_of_site, key) for key in SITE),
    lambda config: f"--nodes={config.cluster.nodes}",
    lambda config: f"--ntasks-per-node={ranks_per_node(config)}",
    lambda config: f"--cpus-per-task={config.cluster.cpus_per_task}",
    _gpus,
    lambda config: f"--mem={config.cluster.memory}" if config.cluster.memory else "",
    lambda config: f"--time={config.cluster.time}",
)


def sbatch_lines(config: Config) -> str:
    """The #SBATCH lines, for a configuration as `resolved` returns it."""
    cluster = config.cluster
    options = [*(text for option in OPTIONS if (text := option(config))), *cluster.sbatch]
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


def log_pattern(config: Config) -> str:
    """Return the folder of the logs with % doubled, for file names in which SLURM expands %j and the like."""
    return f"{config.run.dir}/{LOGS}".replace("%", "%%")

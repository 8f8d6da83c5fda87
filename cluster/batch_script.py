"""Render the batch script of a launch: it starts a run on many nodes, survives preemption and reports the outcome.

    request (#SBATCH) ─> settings ─> setup ─> variables ─> rendezvous ─> ranks (srun) ─> meaning of the exit code

People read the script: its own comments explain the decisions that this file makes.
"""

import shlex
from pathlib import Path

from cluster.launch_problems import ranks_per_node
from cluster.sbatch_options import LOGS, log_pattern, sbatch_lines
from cluster.srun_options import srun_words
from gm_train.config.load import with_absolute_paths
from gm_train.config.schema import Config
from gm_train.run.lock import MARKER

#: Subfolder of a run directory that holds the script and the settings of each launch.
LAUNCHES = "launch"


def resolved(config: Config) -> Config:
    """Return the configuration as the ranks read it: paths are absolute, numbers of nodes and ranks filled in."""
    config = with_absolute_paths(config)
    config.trainer.num_nodes, config.trainer.devices = config.cluster.nodes, ranks_per_node(config)
    return config


def render_batch_script(config: Config, number: int, python: str) -> str:
    """Render the batch script of a launch.

    Args:
        config: a configuration without problems, as `resolved` returns it.
        number: number of the launch within its run directory, from 1.
        python: interpreter of the ranks, unless `cluster.python` names one.
    """
    parts = [
        _title(config, number),
        sbatch_lines(config),
        _opening(config, number),
        *_setup(config),
        _variables(config),
    ]
    return "\n".join([*parts, _RENDEZVOUS, _ranks(config, python), _ending(config)])


def _title(config: Config, number: int) -> str:
    nodes, per_node = config.cluster.nodes, ranks_per_node(config)
    ranks = _count(per_node, "rank") + (" each" if nodes > 1 else "")
    return f"""\
#!/bin/bash
# GeneMamba pretraining on {_count(nodes, "node")} with {ranks}, one SLURM task for each rank.
# Rendered by `gm-train launch`. The ranks read config.yaml in the same folder. To submit this script again:
#   sbatch {shlex.quote(f"{launch_dir(config, number)}/job.sh")}
"""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def launch_dir(config: Config, number: int) -> Path:
    """Return the folder of a launch, which holds its script, its configuration and its environment."""
    return Path(config.run.dir) / LAUNCHES / f"{number:03d}"


def _opening(config: Config, number: int) -> str:
    return f"""\
set -u # a variable that is not set is an error
run_dir={shlex.quote(config.run.dir)}
config={shlex.quote(f"{launch_dir(config, number)}/config.yaml")}
max_requeues={config.cluster.max_requeues}

{_FIRST_LINES}"""


_FIRST_LINES = """\
say() { echo "[$(date '+%F %T')] $*"; }

: "${SLURM_JOB_ID:?this is a batch script: give it to sbatch}"
restart=${SLURM_RESTART_COUNT:-0} # how often the job was put back into the queue, by this script or by SLURM
say "job $SLURM_JOB_ID, start $((restart + 1)), on $SLURM_JOB_NODELIST"
if ((restart > max_requeues)); then
    say "more than $max_requeues restarts (cluster.max_requeues): find out why the job keeps ending, then launch again"
    exit 1
fi
"""


def _setup(config: Config) -> list[str]:
    if not config.cluster.setup:
        return []
    lines = "\n".join(config.cluster.setup)
    return [
        f"""\
# The site's environment (cluster.setup). A line that fails ends the job; an unset variable does not.
trap 'say "cluster.setup failed at: $BASH_COMMAND"' ERR
set -e +u
{lines}
set +e -u
trap - ERR
"""
    ]


def _variables(config: Config) -> str:
    workers = config.data.workers
    threads, why = "$SLURM_CPUS_PER_TASK", "not the node's"
    if workers:
        threads = f"$((SLURM_CPUS_PER_TASK > {workers} ? SLURM_CPUS_PER_TASK - {workers} : 1))"
        why += f", less one for each of its {_count(workers, 'loader worker')}"
    exports = [f"export {assignment(entry)}" for entry in config.cluster.env]
    lines = [
        "# Environment variables of every rank: srun passes this script's environment on.",
        "export PYTHONUNBUFFERED=1 # so that the log holds the last lines of a killed rank",
        f"# PyTorch's threads: the cores of one rank, {why}.",
        f"export OMP_NUM_THREADS={threads}",
        *_TRITON_CACHE,
        "# If the launching shell has set these, they would take precedence over SLURM's own numbers.",
        "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE",
        *(["# cluster.env: what this site's network and libraries need."] if exports else []),
        *exports,
    ]
    return "\n".join(lines) + "\n"


_TRITON_CACHE = [
    "# Triton compiles kernels into a folder of each node: in a shared home, all ranks would write the same files.",
    'export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-$UID}"',
]


def assignment(entry: str) -> str:
    """Turn a NAME=value entry into a shell assignment with the value quoted."""
    name, _, value = entry.partition("=")
    quoted = shlex.quote(value)
    # Bash accepts NAME==value, but it looks wrong to readers and to shellcheck.
    return f"{name}='{quoted}'" if quoted.startswith("=") else f"{name}={quoted}"


_RENDEZVOUS = """\
# The ranks meet on the first node, at the address that SLURM uses for it, or else at its name.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node -o "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$first}
# Ports 20000 to 29999 are below the range that Linux gives to clients. Two jobs on one node nearly always get
# different ports. So do two starts of one job: a process left over from the last start cannot answer this one.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 1000 * 10 + restart % 10))
say "rendezvous at $MASTER_ADDR:$MASTER_PORT"
"""


def _ranks(config: Config, python: str) -> str:
    cluster, per_node = config.cluster, ranks_per_node(config)
    prefix = f"    {cluster.prefix} # cluster.prefix\n" if cluster.prefix else ""
    gpus = (
        "# A task sees all GPUs of its node, because NCCL needs that for NVLink, and uses GPU number SLURM_LOCALID.\n"
        if cluster.gpus_per_node
        else ""
    )
    more = "".join(f"    {words} \\\n" for words in map(srun_words, cluster.srun))
    of_site = "# Then what this site needs (cluster.srun).\n" if more else ""
    return f"""\
command=(
{prefix}    {shlex.quote(cluster.python or python)} -m gm_train.cli fit "$config"
)

{gpus}# USR1 would end a process that is still starting: a task ignores it until Python has installed its own handler.
# The folder of compiled kernels must be the user's own on every node, since what is in it is run.
task='trap "" USR1
mkdir -m 700 -p "$TRITON_CACHE_DIR"; [[ -O $TRITON_CACHE_DIR ]] || unset TRITON_CACHE_DIR
echo "== job $SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}} on $SLURMD_NODENAME"
exec "$@"'

# --cpus-per-task: srun does not take it over from sbatch since SLURM 22.05.
# --kill-on-bad-exit: when one rank fails, end the others, which would only wait for it.
# --wait=0: when other ranks finish first, do not kill rank 0, which may still be writing.
# --export=ALL: the variables above reach the ranks even if the job was submitted with --export=NONE.
# --output: one log for each rank (%t); read rank 0's first. Later starts of the job append to the same logs.
{of_site}srun --ntasks={cluster.nodes * per_node} --ntasks-per-node={per_node} --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    --kill-on-bad-exit=1 --wait=0 --export=ALL \\
{more}    --output={shlex.quote(f"{log_pattern(config)}/%j-%t.out")} --open-mode=append \\
    bash -c "$task" rank "${{command[@]}}"
code=$?
"""


def _ending(config: Config) -> str:
    return _VERDICT + (_REQUEUE if config.cluster.requeue else _NO_REQUEUE)


_VERDICT = f"""\
# What happened. Ranks that were asked to leave and have saved exit with 85. But the code that srun reports is no proof:
# it differs when some ranks end before others, and it can be 85 although one rank has crashed. The proof is the marker
# that names this start of this job: rank 0 writes it once all ranks have agreed to leave and their checkpoint is whole.
# Nothing below runs after scancel, which also ends this shell: it catches no signals. Nor does it run after the loss of
# a node: srun waits for the ranks until SLURM notices the loss (SlurmdTimeout, often minutes). SLURM then ends this
# shell and requeues the job.
if ((code == 0)); then
    say "finished"
    exit 0
fi
if [[ $(cat "$run_dir/{MARKER}" 2>/dev/null) != "$SLURM_JOB_ID.$restart" ]]; then
    say "failed with exit code $code, not requeued: the reason is at the end of $run_dir/{LOGS}/$SLURM_JOB_ID-*.out"
    exit "$((code == 85 ? 1 : code))"
fi
"""

_REQUEUE = """\
if ((restart >= max_requeues)); then
    say "saved, and left; not requeued after $max_requeues restarts (cluster.max_requeues): launch again to continue"
    exit 85
fi
say "asked to leave (exit code $code) and saved: back into the queue, restart $((restart + 1)) of at most $max_requeues"
# SLURM ends this script once it has put the job back.
scontrol requeue "$SLURM_JOB_ID" || say "SLURM refused to requeue the job: launch again to continue"
exit 85
"""

_NO_REQUEUE = """\
say "asked to leave (exit code $code) and saved; cluster.requeue=false: launch again to continue"
exit 85
"""

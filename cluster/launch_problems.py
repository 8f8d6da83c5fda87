"""Find the settings of a launch that cannot work, before anything is written or submitted."""

import re
import shlex

from cluster.srun_options import srun_problems
from gm_train.config.schema import Config

# days-hours[:minutes[:seconds]] or minutes[:seconds] or hours:minutes:seconds
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
_MEMORY = re.compile(r"\d+[KMGT]?")
_GPU_TYPE = re.compile(r"[\w.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LAST_SIGNAL_SECOND = 65535  # sbatch --signal holds it in 16 bits

# Options of sbatch that have a setting of their own. If an option is given twice, sbatch silently uses the later one.
_OPTIONS = {
    "-N": "cluster.nodes", "--nodes": "cluster.nodes",
    "--ntasks-per-node": "cluster.tasks_per_node", "-n": "cluster.nodes", "--ntasks": "cluster.nodes",
    "-c": "cluster.cpus_per_task", "--cpus-per-task": "cluster.cpus_per_task",
    "-G": "cluster.gpus_per_node", "--gpus": "cluster.gpus_per_node", "--gpus-per-node": "cluster.gpus_per_node",
    "--gpus-per-task": "cluster.gpus_per_node", "--gres": "cluster.gpus_per_node and cluster.gpu_request=gres",
    "--mem": "cluster.memory", "-p": "cluster.partition", "--partition": "cluster.partition",
    "-A": "cluster.account", "--account": "cluster.account", "-q": "cluster.qos", "--qos": "cluster.qos",
    "-C": "cluster.constraint", "--constraint": "cluster.constraint",
    "-x": "cluster.exclude", "--exclude": "cluster.exclude", "-t": "cluster.time", "--time": "cluster.time",
    "--signal": "cluster.signal_seconds", "--requeue": "cluster.requeue", "--no-requeue": "cluster.requeue",
    "-J": "cluster.job_name", "--job-name": "cluster.job_name",
}  # fmt: skip
_NEVER = {
    **dict.fromkeys(("-o", "--output", "-e", "--error", "--open-mode"), "the logs go to the run directory"),
    **dict.fromkeys(("-a", "--array"), "the jobs of an array would all train into one run directory"),
}


def ranks_per_node(config: Config) -> int:
    """Return the number of ranks on a node: one for each GPU, or `cluster.tasks_per_node` without GPUs."""
    return config.cluster.gpus_per_node or config.cluster.tasks_per_node


def seconds_of(time: str) -> int | None:
    """Convert a SLURM time limit to seconds; None if the text is not a time limit, such as UNLIMITED."""
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(match["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def launch_problems(config: Config) -> list[str]:
    """List every setting of a launch that cannot work or contradicts another one, one message for each."""
    ranks = [] if _count_problems(config) else _rank_problems(config)
    return job_problems(config) + _signal_problems(config) + ranks


def job_problems(config: Config) -> list[str]:
    """List the problems of the settings that every job has, whether it trains or prepares data."""
    cluster = config.cluster
    problems = _count_problems(config) + _format_problems(config) + _time_problems(config) + _text_problems(config)
    problems += [problem for entry in cluster.env for problem in _env_problems(entry)]
    problems += [problem for option in cluster.sbatch for problem in _option_problems(option)]
    return problems + [problem for option in cluster.srun for problem in srun_problems(option)]


def _count_problems(config: Config) -> list[str]:
    counts = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0, "max_requeues": 0}
    return [
        f"cluster.{key}={getattr(config.cluster, key)}: must be at least {least}"
        for key, least in counts.items()
        if getattr(config.cluster, key) < least
    ]


def _format_problems(config: Config) -> list[str]:
    cluster = config.cluster
    problems = []
    if cluster.gpu_request not in ("gpus-per-node", "gres"):
        problems.append(f"cluster.gpu_request={cluster.gpu_request}: expected gpus-per-node | gres")
    if not _GPU_TYPE.fullmatch(cluster.gpu_type):
        problems.append(
            f"cluster.gpu_type={cluster.gpu_type!r}: expected a name such as h100 (`sinfo -o %G` lists them)"
        )
    if cluster.gpu_memory_gb is not None and cluster.gpu_memory_gb < 1:
        problems.append(f"cluster.gpu_memory_gb={cluster.gpu_memory_gb}: expected whole GB, such as 80, or null")
    if cluster.memory and not _MEMORY.fullmatch(cluster.memory):
        problems.append(
            f"cluster.memory={cluster.memory!r}: expected a number with K, M, G or T after it, such as 900G, "
            "or 0 for all memory of a node"
        )
    return problems


def _time_problems(config: Config) -> list[str]:
    if not seconds_of(config.cluster.time):
        return [
            f"cluster.time={config.cluster.time!r}: not a time limit; expected minutes, hours:minutes:seconds or "
            "days-hours:minutes:seconds, such as 24:00:00 or 2-12:00:00"
        ]
    return []


def _signal_problems(config: Config) -> list[str]:
    cluster = config.cluster
    limit = seconds_of(cluster.time)
    if not 1 <= cluster.signal_seconds <= _LAST_SIGNAL_SECOND:
        return [f"cluster.signal_seconds={cluster.signal_seconds}: must lie in 1 … {_LAST_SIGNAL_SECOND}"]
    if limit and cluster.signal_seconds >= limit:
        return [
            f"cluster.signal_seconds={cluster.signal_seconds}: the run would be asked to leave before it starts, since "
            f"cluster.time={cluster.time} is {limit} s; raise cluster.time or lower cluster.signal_seconds"
        ]
    return []


def _text_problems(config: Config) -> list[str]:
    """Find text that would break out of its line of the script, or out of its shell word."""
    cluster = config.cluster
    texts = {
        f"cluster.{key}": getattr(cluster, key)
        for key in ("partition", "account", "qos", "constraint", "exclude", "job_name", "prefix", "python")
    }
    texts["run.dir"] = config.run.dir
    for key in ("setup", "env", "sbatch", "srun"):
        texts |= {f"cluster.{key}[{i}]": text for i, text in enumerate(getattr(cluster, key))}
    problems = [
        f"{key}={text!r}: must be one line of printable text (of a list, each entry)"
        for key, text in texts.items()
        if _breaks(text)
    ]
    # sbatch and srun take a backslash in a file name as "do not expand patterns", and drop it.
    problems += [
        f"{key}={texts[key]!r}: SLURM cannot write logs to a path with a backslash: choose another name"
        for key in ("run.dir", "cluster.job_name")
        if "\\" in texts[key]
    ]
    return problems + ([] if _breaks(cluster.prefix) else _prefix_problems(cluster.prefix))


def _breaks(text: str) -> bool:
    return not all(character.isprintable() or character == "\t" for character in text)


def _prefix_problems(prefix: str) -> list[str]:
    lexer = shlex.shlex(prefix, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError as error:
        return [f"cluster.prefix={prefix!r}: cannot be read as shell words ({error})"]
    stray = [word for word in words if word.startswith("#") or set(word) <= set("();<>|&")]
    if stray:
        return [
            f"cluster.prefix={prefix!r}: {stray[0]!r} would end the command; set a variable in cluster.setup "
            "(it takes any shell lines), and use that variable here"
        ]
    return []


def _env_problems(entry: str) -> list[str]:
    name, equals, value = entry.partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        return [f"cluster.env entry {entry!r}: expected NAME=value, such as NCCL_SOCKET_IFNAME=ib0"]
    if "$" in value or "`" in value:
        return [
            f"cluster.env entry {entry!r}: values are used literally, nothing is expanded; "
            f"put `export {entry}` into cluster.setup"
        ]
    return []


def _option_problems(option: str) -> list[str]:
    if not option.startswith("-"):
        return [f"cluster.sbatch entry {option!r}: expected an option of sbatch, such as --exclusive"]
    # The value of a short option may follow without a space.
    name = re.split(r"[\s=]", option, maxsplit=1)[0] if option.startswith("--") else option[:2]
    if name in _OPTIONS:
        return [f"cluster.sbatch entry {option!r}: set {_OPTIONS[name]} instead"]
    if name in _NEVER:
        return [f"cluster.sbatch entry {option!r}: leave it out: {_NEVER[name]}"]
    return []


def _rank_problems(config: Config) -> list[str]:
    # Imported late, so that this module needs only the types of the settings.
    from gm_train.config.check import rank_problems

    cluster, trainer = config.cluster, config.trainer
    per_node = ranks_per_node(config)
    which = "gpus_per_node" if cluster.gpus_per_node else "tasks_per_node"
    problems = []
    if trainer.num_nodes not in (None, cluster.nodes):
        problems.append(
            f"trainer.num_nodes={trainer.num_nodes} and cluster.nodes={cluster.nodes} contradict each other: "
            "`gm-train launch` sets trainer.num_nodes: leave it out, or add trainer.num_nodes=null after the file"
        )
    if trainer.devices not in (None, per_node):
        problems.append(
            f"trainer.devices={trainer.devices} and cluster.{which}={per_node} contradict each other: "
            "`gm-train launch` sets trainer.devices: leave it out, or add trainer.devices=null after the file"
        )
    return problems + rank_problems(config, cluster.nodes * per_node)

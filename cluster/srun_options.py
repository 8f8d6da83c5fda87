"""Options of srun that a site needs and no setting covers (`cluster.srun`), such as those of Pyxis."""

import shlex

# Options that the batch script sets itself, and why or what sets them.
_SET = {
    **dict.fromkeys(("-N", "--nodes"), "cluster.nodes"),
    **dict.fromkeys(("-n", "--ntasks", "--ntasks-per-node"), "cluster.nodes and cluster.gpus_per_node"),
    **dict.fromkeys(("-c", "--cpus-per-task"), "cluster.cpus_per_task"),
    "--export": "cluster.env",
}
_NEVER = {
    **dict.fromkeys(("-o", "--output", "-e", "--error", "--open-mode"), "the logs go to the run directory"),
    **dict.fromkeys(("-K", "--kill-on-bad-exit", "-W", "--wait"), "the script decides when ranks are ended"),
    **dict.fromkeys(
        ("--gpus-per-task", "--gpu-bind"), "every rank must see all GPUs of its node, which NCCL needs for NVLink"
    ),
    "--multi-prog": "all ranks run the same command",
}


def srun_words(option: str) -> str:
    """Return an entry of `cluster.srun` as the shell must read it: each word literally.

    Args:
        option: an option with or without a value, such as `--mpi=pmix` or `--container-image docker://name#image`.
    """
    return shlex.join(shlex.split(option))


def srun_problems(option: str) -> list[str]:
    """Say why an entry of `cluster.srun` cannot be passed on; empty if it can."""
    try:
        words = shlex.split(option)
    except ValueError as error:
        return [f"cluster.srun entry {option!r}: cannot be read as shell words ({error})"]
    if not words or not words[0].startswith("-") or set(words[0]) == {"-"}:
        return [f"cluster.srun entry {option!r}: expected an option of srun, such as --mpi=pmix"]
    if "$" in option or "`" in option:
        return [f"cluster.srun entry {option!r}: nothing is expanded in it: write the value itself"]
    # The value of a short option may follow without a space.
    name = words[0].partition("=")[0] if words[0].startswith("--") else words[0][:2]
    if name in _SET:
        return [f"cluster.srun entry {option!r}: set {_SET[name]} instead"]
    if name in _NEVER:
        return [f"cluster.srun entry {option!r}: leave it out: {_NEVER[name]}"]
    return []

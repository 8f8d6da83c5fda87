"""Check SLURM: its tools, and the job that this process runs in."""

import os
import re
import shutil
import subprocess

from cluster.doctor.checkup import Checkup, Level, Problems
from cluster.launch_problems import seconds_of
from data_shards.errors import DataError
from gm_train.config.schema import Config


def check_tools(checkup: Checkup) -> None:
    """Report whether jobs can be submitted from here; used without a configuration."""
    answers = checkup.ask("slurm", look_for_tools)
    if answers is not None:
        checkup.conclude("slurm", *answers[0].value)


def look_for_tools() -> tuple[str, Problems]:
    """Look for SLURM's tools. Return a line for the report, and what is wrong with the tools."""
    missing = [tool for tool in ("sbatch", "srun", "scontrol") if shutil.which(tool) is None]
    if "sbatch" in missing:
        return "no sbatch here: `gm-train launch --dry-run` works, submitting does not", []
    try:
        version = _run("sbatch", "--version")
    except DataError as error:
        return "", [(Level.WARN, f"nothing can be submitted from here: {error}")]
    if missing:
        return version, [(Level.WARN, f"{', '.join(missing)} not found: is all of SLURM's client installed?")]
    return f"{version}: sbatch, srun and scontrol are here", []


def check_job(checkup: Checkup, config: Config | None) -> None:
    """Report the job's remaining time and whether SLURM requeues it; outside of a job do nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    # Only one rank asks: a thousand requests at once would overload the controller.
    answers = checkup.ask("job", lambda: _show(job) if checkup.ranks.is_first else "")
    if answers is None:
        return
    if not answers[0].value:
        checkup.conclude("job", f"{job}: not checked, scontrol is not installed on rank 0's node", [])
        return
    measured, problems = judge_job(job, answers[0].value, config)
    checkup.conclude("job", measured, problems)


def _show(job: str) -> str:
    """Return SLURM's description of a job; empty if scontrol is not installed."""
    return _run("scontrol", "show", "job", "--oneliner", job) if shutil.which("scontrol") else ""


def judge_job(job: str, description: str, config: Config | None) -> tuple[str, Problems]:
    """Judge the output of `scontrol show job`.

    Args:
        job: number of the job.
        description: the output, all on one line.
        config: the configuration of the run; None reports without judging.

    Returns:
        A line for the report, and what speaks against a run in this job.
    """
    fields = dict(re.findall(r"(\w+)=(\S+)", description))
    limit, ran = seconds_of(fields.get("TimeLimit", "")), seconds_of(fields.get("RunTime", ""))
    left = limit - ran if limit is not None and ran is not None else None
    comes_back = fields.get("Requeue") == "1"
    measured = (
        f"{job}: {'no time limit' if left is None else f'{left} s of {limit} s left'}, "
        f"{'is' if comes_back else 'is not'} put back into the queue after a preemption"
    )
    problems: Problems = []
    if config is None:
        return measured, problems
    signal = config.cluster.signal_seconds
    if left is not None and left <= signal:
        problems.append(
            (
                Level.WARN,
                f"a run is asked to leave cluster.signal_seconds={signal} s before the end, so one started now would "
                "leave at once: ask for more time",
            )
        )
    if config.cluster.requeue and not comes_back:
        problems.append(
            (Level.WARN, "cluster.requeue=true, but this job was submitted without --requeue: a lost node ends it")
        )
    return measured, problems


def _run(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"`{' '.join(words)}` cannot be run ({error}): is SLURM set up on this node?") from error
    if done.returncode:
        message = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise DataError(f"`{' '.join(words)}`: {message}: does the controller answer (`scontrol ping`)?")
    return done.stdout.strip()

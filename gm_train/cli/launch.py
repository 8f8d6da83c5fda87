"""`gm-train launch`: train on many nodes under SLURM."""

import argparse
import logging
import shlex
import sys
from pathlib import Path

_EPILOG = """\
examples:
  gm-train launch configs/genemamba-66m.yaml configs/cluster/h100-infiniband.yaml --dry-run
  gm-train launch configs/demo.yaml configs/cluster/local-cpu.yaml run.dir=/shared/runs/demo

The script is printed, checked with `sbatch --test-only`, written with its settings to RUN_DIR/launch/001 (002, ...),
and submitted. With --dry-run it is only printed.
Before its time limit and on preemption, the job saves a checkpoint and goes back into the queue; after the loss of a
node, SLURM requeues it. Each start resumes the run until it is finished.
Settings: gm-train fit --settings lists them, those of the job under cluster. More: docs/slurm.md.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `launch`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "launch",
        help="train on many nodes under SLURM",
        description="Render the batch script of a run, check it and submit it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="+",
        metavar="CONFIG.yaml|key=value",
        help="files and settings; later ones override earlier ones",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the script; write and submit nothing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train launch`; return the exit code."""
    from cluster import submit
    from cluster.batch_script import launch_dir, render_batch_script, resolved
    from cluster.launch_problems import launch_problems
    from cluster.sbatch_options import LOGS
    from gm_train.config.check import ConfigError
    from gm_train.config.load import load_config

    config = load_config(*arguments.config)
    problems = launch_problems(config)
    if problems:
        raise ConfigError(problems)
    config = resolved(config)
    run_dir = Path(config.run.dir)
    number = submit.next_number(run_dir)
    script = render_batch_script(config, number, sys.executable)
    if not arguments.dry_run:
        submit.refuse_second_job(run_dir)
    print(script, end="" if arguments.dry_run else "\n", flush=True)
    # After the script, which is long: otherwise the warnings would scroll out of sight.
    for warning in submit.warnings(config):
        logging.getLogger(__name__).warning(warning)
    if arguments.dry_run:
        return 0
    print(submit.check_launch(script), flush=True)
    launch = launch_dir(config, number)
    submit.write_launch(launch, config, script, arguments.config)
    job = submit.submit(launch)
    logs = run_dir / LOGS
    print(
        f"submitted job {job}: {launch / submit.SCRIPT}\n"
        f"  queue     squeue --jobs={job}\n"
        f"  training  tail -F {shlex.quote(f'{logs}/{job}-0.out')}\n"
        f"  starts    tail -F {shlex.quote(f'{logs}/{job}-batch.out')}"
    )
    return 0

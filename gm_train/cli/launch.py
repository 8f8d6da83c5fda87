"""`gm-train launch`: train on many nodes under SLURM."""

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gm_train.config.schema import Config

_EPILOG = """\
examples:
  gm-train launch configs/genemamba-66m.yaml configs/cluster/h100-infiniband.yaml --dry-run
  gm-train launch configs/demo.yaml configs/cluster/local-cpu.yaml run.dir=/shared/runs/demo

The script is printed, checked with `sbatch --test-only`, written with its settings to RUN_DIR/launch/001 (002, ...),
and submitted. With --dry-run it is only printed. A short plan of memory and hours goes to stderr; a run that cannot fit
into the memory of its GPUs is refused, if cluster.gpu_type or cluster.gpu_memory_gb says how much that is.
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
    from cluster.launch_problems import launch_problems, ranks_per_node
    from cluster.sbatch_options import LOGS
    from gm_train.checkpoint.first_start import fix_rows_of_run
    from gm_train.config.check import ConfigError
    from gm_train.config.load import load_config

    config = load_config(*arguments.config)
    problems = launch_problems(config)
    if problems:
        raise ConfigError(problems)
    config = resolved(config)
    chosen_step = fix_rows_of_run(config, config.cluster.nodes * ranks_per_node(config))
    if problems := launch_problems(config):
        raise ConfigError(problems)
    run_dir = Path(config.run.dir)
    number = submit.next_number(run_dir)
    script = render_batch_script(config, number, sys.executable)
    if not arguments.dry_run:
        submit.refuse_second_job(run_dir)
    print(script, end="" if arguments.dry_run else "\n", flush=True)
    print(_plan(config), file=sys.stderr, flush=True)
    # After the script, which is long: otherwise the warnings would scroll out of sight.
    if chosen_step:
        print(chosen_step, file=sys.stderr, flush=True)
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


def _plan(config: "Config") -> str:
    """Summarise memory and hours of a resolved launch.

    Raises:
        DataError: a rank's memory is too small, on a GPU whose memory the settings of the cluster say.
    """
    from cluster.launch_problems import ranks_per_node
    from data_shards.errors import DataError
    from gm_train.plan.advice import refuse_too_large, tight
    from gm_train.plan.devices import device_of_cluster
    from gm_train.plan.make_plan import make_plan
    from gm_train.plan.render_plan import summary

    device = device_of_cluster(config.cluster) if config.cluster.gpus_per_node else None
    try:
        plan = make_plan(config, config.cluster.nodes, ranks_per_node(config), device)
    except DataError as error:
        return f"no plan: {error}"
    refuse_too_large(plan)
    text = summary(plan)
    if device is not None and device.memory is None:
        text += "\nnot compared with the GPU's memory, which is not known: cluster.gpu_memory_gb=N says it"
    if (warning := tight(plan)) is not None:
        text += f"\n{warning}"
    return text

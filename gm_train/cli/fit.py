"""`gm-train fit`."""

import argparse
import contextlib
import os
import signal
from pathlib import Path

FAILED = 1

_EPILOG = """\
example:
  gm-train fit configs/demo.yaml run.dir=runs/second optim.lr=1e-3

A directory that holds a committed checkpoint is resumed, by the same command or by its own configuration:
  gm-train fit runs/second/config.yaml trainer.max_steps=5000
Every setting, with its type, default and meaning: gm_train/config/schema.py.
SIGTERM or SIGUSR1 saves at the next step and leaves with exit code 85, Ctrl-C saves and leaves with 1,
once more ends at once.
Several ranks: trainer.devices=2 starts them on this machine; under srun or torchrun every task is a rank.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "fit",
        help="train a model; resumes by itself",
        description="Train a model from configuration files and key=value words, merged left to right.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG.yaml|key=value")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gm_train.config.load import load_config
    from gm_train.ranks.launch_local import PREEMPTED, follow_parent, is_first, is_launched, run_ranks
    from gm_train.ranks.signals import Leaving

    config = load_config(arguments.config)
    if is_first() and "SLURM_JOB_ID" not in os.environ:
        _refuse_job_in_queue(Path(config.run.dir))
    if (config.trainer.devices or 1) > 1 and not is_launched():
        return run_ranks(["fit", *arguments.config], config.trainer.devices or 1)
    leaving = Leaving()
    leaving.install()
    follow_parent()
    try:
        # Behind the check of the configuration: importing torch takes seconds.
        from gm_train.train.fit import fit

        left_by = fit(config, leaving).left_by
    except BaseException:
        leaving.restore()
        raise
    if left_by is None:
        leaving.restore()
        return 0
    # When the first rank has left, a launcher may signal those that are about to; Python, on its way out, would let it.
    leaving.ignore()
    return FAILED if left_by is signal.SIGINT else PREEMPTED


def _refuse_job_in_queue(run_dir: Path) -> None:
    """Raise DataError if a launched job of this run waits in the queue: it would find the run taken, and fail."""
    if not (run_dir / "launch").is_dir():
        return
    from cluster.submit import QueueUnknown, refuse_job_in_queue

    # Where no SLURM answers, nothing will start such a job either.
    with contextlib.suppress(QueueUnknown):
        refuse_job_in_queue(run_dir.absolute())

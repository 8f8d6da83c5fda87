"""`gm-train fit`: train a model."""

import argparse
import contextlib
import os
import signal
from functools import partial
from pathlib import Path

from gm_train.cli.quick_imports import quick_imports

FAILED = 1

_EPILOG = """\
example:
  gm-train fit configs/demo.yaml run.dir=runs/second optim.lr=1e-3

If run.dir contains a committed checkpoint, training resumes from it. Repeat the same command, or use the run's own
configuration:
  gm-train fit runs/second/config.yaml trainer.max_steps=5000

Settings: gm-train fit --settings lists each with its type, default and meaning.
Signals: SIGTERM or SIGUSR1 saves at the next step and exits with code 85. Ctrl-C saves and exits with code 1; a second
Ctrl-C ends at once.
Several ranks: trainer.devices=2 starts two on this machine; under srun or torchrun, every task is a rank.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `fit`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "fit",
        help="train a model, or resume its training",
        description="Train a model, or resume its training from the last committed checkpoint.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG.yaml|key=value",
        help="files and settings; later ones override earlier ones",
    )
    parser.add_argument("--settings", action="store_true", help="list all settings and exit")
    parser.set_defaults(run=partial(run, parser))


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Run `gm-train fit`; return the exit code."""
    if arguments.settings:
        from gm_train.config.settings import render_settings

        print(render_settings())
        return 0
    if not arguments.config:
        parser.error("the following arguments are required: CONFIG.yaml|key=value")
    return train(arguments.config)


def train(words: list[str]) -> int:
    """Train with files and settings, as `gm-train fit` does; return the exit code.

    Raises:
        ConfigError, DataError: as of `fit`.
    """
    from gm_train.config.load import load_config
    from gm_train.ranks.launch_local import PREEMPTED, follow_parent, is_first, is_launched, run_ranks
    from gm_train.ranks.signals import Leaving

    config = load_config(*words)
    if is_first() and "SLURM_JOB_ID" not in os.environ:
        _refuse_job_in_queue(Path(config.run.dir))
    if (config.trainer.devices or 1) > 1 and not is_launched():
        return run_ranks(["fit", *words], config.trainer.devices or 1)
    leaving = Leaving()
    leaving.install()
    follow_parent()
    try:
        # Imported after the check of the configuration, because importing torch takes seconds.
        with quick_imports():
            from gm_train.train.fit import fit

        stopped_by = fit(config, leaving).stopped_by
    except BaseException:
        leaving.restore()
        raise
    if stopped_by is None:
        leaving.restore()
        return 0
    # After the first rank has left, a launcher may signal the others: that would kill a Python that is exiting.
    leaving.ignore()
    return FAILED if stopped_by is signal.SIGINT else PREEMPTED


def _refuse_job_in_queue(run_dir: Path) -> None:
    """Raise DataError if a job of this run is in the queue: it would find the run directory locked, and fail."""
    if not (run_dir / "launch").is_dir():
        return
    from cluster.submit import QueueUnknown, refuse_job_in_queue

    # If SLURM does not answer, it cannot start such a job either.
    with contextlib.suppress(QueueUnknown):
        refuse_job_in_queue(run_dir.absolute())

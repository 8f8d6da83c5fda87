"""`gm-train fit`."""

import argparse
import signal

FAILED = 1
#: Exit code of a run that was told to leave (SIGTERM, SIGUSR1) and saved: start the same command again.
PREEMPTED = 85

_EPILOG = """\
example:
  gm-train fit configs/demo.yaml run.dir=runs/second optim.lr=1e-3

A directory that holds a committed checkpoint is resumed, by the same command or by its own configuration:
  gm-train fit runs/second/config.yaml trainer.max_steps=5000
Every setting, with its type, default and meaning: gm_train/config.py.
SIGTERM or SIGUSR1 saves at the next step and leaves with exit code 85, Ctrl-C saves and leaves with 1.
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
    from gm_train.leaving import Leaving
    from gm_train.settings import load_config

    config = load_config(arguments.config)
    leaving = Leaving()
    leaving.install()
    try:
        # Behind the check of the configuration: importing torch takes seconds.
        from gm_train.fit import fit

        left_by = fit(config, leaving).left_by
    finally:
        leaving.restore()
    if left_by is None:
        return 0
    return FAILED if left_by is signal.SIGINT else PREEMPTED

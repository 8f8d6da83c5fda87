"""`gm-train fit`."""

import argparse

_EPILOG = """\
example:
  gm-train fit configs/demo.yaml run.dir=runs/second optim.lr=1e-3

A directory that holds a committed checkpoint is resumed; raise trainer.max_steps to go on with a finished run.
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
    from gm_train.settings import load_config

    config = load_config(arguments.config)
    # Behind the check of the configuration: importing torch takes seconds.
    from gm_train.fit import fit

    fit(config)
    return 0

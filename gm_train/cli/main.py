"""The command line: `gm-train <command>`."""

import argparse
import importlib.metadata
import logging
import os
import select
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from data_shards.errors import DataError, OptionError
from data_shards.workers import interrupts
from gm_train.cli import bench, ckpt, data, doctor, eval, fit, launch
from gm_train.ranks.launch_local import OtherRankFailed, is_first


class _Version(argparse.Action):
    """Looks it up only if it is asked for: a checkout on the path that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print("gm-train", importlib.metadata.version("gm-train"))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments that returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="gm-train",
        description="Pretrain GeneMamba on ranked genes: from counts to a trained, checked model.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data.add_parser(subparsers)
    fit.add_parser(subparsers)
    bench.add_parser(subparsers)
    eval.add_parser(subparsers)
    ckpt.add_parser(subparsers)
    launch.add_parser(subparsers)
    doctor.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 (done), 1 (failed), 2 (wrong usage) or 85 (`fit` was told to leave, and saved)."""
    arguments = build_parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("gm-train: interrupted", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    # Of what all ranks would say, rank 0 says it.
    level = logging.INFO if is_first() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for noisy in ("lightning", "lightning.pytorch", "mlflow", "alembic", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Imported late: reading a configuration needs OmegaConf, `gm-train --help` does not.
    from gm_train.config.check import ConfigError

    try:
        # Training has its own way to end.
        with interrupts.noted() if arguments.command == "data" else nullcontext():
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(error, arguments.debug, 2)
    except DataError as error:
        return _fail(error, arguments.debug, 2 if isinstance(error, OptionError) else 1)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return 1
        print(f"gm-train: unexpected {type(error).__name__}", file=sys.stderr)
        return _fail(error, arguments.debug, 1)


def _is_unread() -> bool:
    """Whether what is printed goes into a pipe that nobody reads any more, as behind `| head`."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not pipe.poll(0):
        return False
    # What waits to be printed would fail once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _fail(error: Exception, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exception(error)
    # Of an error that all ranks find, and of one that another rank has told, one message is enough.
    if isinstance(error, OtherRankFailed) or (getattr(error, "everywhere", False) and not is_first()):
        return code
    print(f"gm-train: error: {error}", file=sys.stderr)
    return code

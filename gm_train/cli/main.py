"""The command line `gm-train COMMAND`: parse it, run the command, and report errors."""

import argparse
import importlib.metadata
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from data_shards.errors import DataError, OptionError
from data_shards.workers import interrupts
from gm_train.cli import ablate, bench, ckpt, compare, doctor, eval, fit, launch, plan, report
from gm_train.cli.cells import annotate, embed, predict
from gm_train.cli.command_parser import CommandParser
from gm_train.cli.data import data
from gm_train.cli.weights import export, import_weights
from gm_train.ranks.launch_local import OtherRankFailed, is_first

_EPILOG = """\
examples:
  gm-train data medians cells.h5ad --out medians.zarr
  gm-train data shards cells.h5ad --medians medians.zarr --out cells.zarr --top-k 512
  gm-train fit configs/demo.yaml data.store=cells.zarr objective.pathways= run.dir=runs/mine
  gm-train eval runs/mine cells.h5ad --label cell_type

gm-train COMMAND --help shows the options of a command, with examples.
"""

#: Signals after which a command removes what is half-written. `data` keeps finished parts, whatever ends it.
_NOTED = {
    "ablate": (signal.SIGINT, signal.SIGTERM),
    "data": (signal.SIGINT,),
    "embed": (signal.SIGINT, signal.SIGTERM),
    "predict": (signal.SIGINT, signal.SIGTERM),
}


class _Version(argparse.Action):
    """Print the version. It is looked up only here, because a checkout that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print("gm-train", importlib.metadata.version("gm-train"))
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Build the parser. Each command sets `run`, a function of the parsed arguments that returns the exit code."""
    parser: argparse.ArgumentParser = CommandParser(
        prog="gm-train",
        description="Pretrain GeneMamba on ranked genes: from counts to a trained and evaluated model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="also print the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data.add_parser(subparsers)
    fit.add_parser(subparsers)
    bench.add_parser(subparsers)
    eval.add_parser(subparsers)
    compare.add_parser(subparsers)
    ablate.add_parser(subparsers)
    report.add_parser(subparsers)
    embed.add_parser(subparsers)
    annotate.add_parser(subparsers)
    predict.add_parser(subparsers)
    export.add_parser(subparsers)
    import_weights.add_parser(subparsers)
    ckpt.add_parser(subparsers)
    plan.add_parser(subparsers)
    launch.add_parser(subparsers)
    doctor.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return 0 (done), 1 (failed), 2 (wrong usage) or 85 (`fit` saved and left on a signal)."""
    arguments = build_parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("gm-train: interrupted", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    # All ranks would log the same: only rank 0 logs more than errors.
    level = logging.INFO if is_first() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    for noisy in ("lightning", "lightning.pytorch", "torch", "mlflow", "alembic", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Imported late: it needs OmegaConf, which `gm-train --help` does not.
    from gm_train.config.check import ConfigError

    try:
        # `fit` handles signals itself.
        signals = _NOTED.get(arguments.command)
        with interrupts.noted(*signals) if signals else nullcontext():
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
    """Return whether stdout is a pipe that nobody reads any more, as with `| head`."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not pipe.poll(0):
        return False
    # Buffered output would raise the same error again when the interpreter exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _fail(error: Exception, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exception(error)
    # Print one message for an error that all ranks found, and none for an error that another rank prints.
    if isinstance(error, OtherRankFailed) or (getattr(error, "everywhere", False) and not is_first()):
        return code
    print(f"gm-train: error: {error}", file=sys.stderr)
    return code

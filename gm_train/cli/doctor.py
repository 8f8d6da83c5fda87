"""`gm-train doctor`: check what this machine or allocation can run."""

import argparse
import os

_EPILOG = """\
examples:
  gm-train doctor                                    what this machine can run
  gm-train doctor configs/demo.yaml trainer.devices=2
  srun --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 \\
      gm-train doctor configs/genemamba-66m.yaml     one task per rank, as in the run itself

Rank 0 prints one report for all ranks; each line is `ok`, `WARN` or `FAIL`. The exit code is 0 if nothing failed, else
1. Nothing is trained. Small test files show whether all nodes share run.dir; they are deleted again.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `doctor`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "doctor",
        help="check what this machine or allocation can run",
        description="Report what this machine or allocation has.\n"
        "With a configuration, check that it has what the run needs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", nargs="*", metavar="CONFIG.yaml|key=value", help="configuration of the run, as for `gm-train fit`"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=180.0,
        metavar="SECONDS",
        help="how long ranks wait for each other (%(default)g)",
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, greater than 0")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train doctor`; return the exit code."""
    from gm_train.config.load import load_config
    from gm_train.ranks.launch_local import follow_parent, is_launched, run_ranks

    config = load_config(*arguments.config) if arguments.config else None
    if config is not None and (config.trainer.devices or 1) > 1 and not is_launched():
        words = ["doctor", *arguments.config, f"--timeout={arguments.timeout}"]
        return run_ranks(words, config.trainer.devices or 1)
    follow_parent()
    # The report has one line for a failed rendezvous; without this, PyTorch adds a C++ stack trace.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    # Imported after the check of the configuration, because importing torch takes seconds.
    from cluster.doctor.examine import examine

    return examine(config, arguments.timeout)

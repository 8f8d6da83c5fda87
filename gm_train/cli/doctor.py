"""`gm-train doctor`."""

import argparse
import os

_EPILOG = """\
examples:
  gm-train doctor                                    what this machine can run
  gm-train doctor configs/demo.yaml trainer.devices=2
  srun --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 \\
      gm-train doctor configs/genemamba-66m.yaml     one task for each rank, as the run will have

Each line is `ok`, `WARN` or `FAIL`, and rank 0 prints one report for all ranks. Exit code 0 if nothing failed, else 1.
Nothing is trained, and what is written into run.dir to see whether all nodes share it is taken away again.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check what this machine or allocation can run",
        description="Without a configuration: what is here. With one: whether a run of it would find what it needs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="*", metavar="CONFIG.yaml|key=value")
    parser.add_argument(
        "--timeout", type=_seconds, default=180.0, metavar="SECONDS", help="how long ranks wait for each other (180)"
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
    from gm_train.config.load import load_config
    from gm_train.ranks.launch_local import follow_parent, is_launched, run_ranks

    config = load_config(arguments.config) if arguments.config else None
    if config is not None and (config.trainer.devices or 1) > 1 and not is_launched():
        words = ["doctor", *arguments.config, f"--timeout={arguments.timeout}"]
        return run_ranks(words, config.trainer.devices or 1)
    follow_parent()
    # A rendezvous that fails is told in a line; without this PyTorch adds the frames of its C++ code.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    # Behind the check of the configuration: importing torch takes seconds.
    from cluster.doctor.examine import examine

    return examine(config, arguments.timeout)

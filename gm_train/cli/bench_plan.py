"""`gm-train bench plan`: compare a plan with a real run on this machine."""

import argparse
from pathlib import Path

_PLAN_EPILOG = """\
example:
  gm-train bench plan configs/demo.yaml --turns 5    a minute for a small model on a CPU

Each turn plans the run from a few measured steps, as `gm-train plan --measured` does, and then trains some steps of it.
Results: bench.json and bench.md in --out.
"""


def add_plan(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `bench plan`; it sets `run`, which returns the exit code."""
    plan = kinds.add_parser(
        "plan",
        help="compare a plan with a real run on this machine",
        description="Plan a run of one rank and train a few steps of it, in turns: seconds of a step, and memory.",
        epilog=_PLAN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = plan.add_argument
    add("config", nargs="+", metavar="CONFIG.yaml|key=value", help="configuration of the run, as for `gm-train fit`")
    add("--turns", type=int, default=3, metavar="N", help="how often both are done (%(default)s)")
    add("--steps", type=int, default=10, metavar="N", help="timed steps of a real run (%(default)s)")
    add("--out", type=Path, default=Path("runs/bench-plan"), metavar="DIR", help="folder for the results (%(default)s)")
    plan.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace) -> int:
    """Run `gm-train bench plan`; return the exit code."""
    import sys

    from data_shards.errors import OptionError
    from gm_train.config.load import load_config

    config = load_config(*arguments.config)
    if arguments.turns < 1 or arguments.steps < 1:
        raise OptionError(f"--turns {arguments.turns} --steps {arguments.steps}: both must be at least 1")
    from gm_train.bench.plan.bench_plan import run_bench_plan

    written = run_bench_plan(config, arguments.turns, arguments.steps, arguments.out, sys.argv[1:])
    print(written[1].read_text(), flush=True)
    print("written: " + ", ".join(str(path) for path in written))
    return 0

"""`gm-train compare`: put runs side by side."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  gm-train compare runs/masked runs/missing
  gm-train compare runs/masked-seed0 runs/masked-seed1 runs/missing-seed0 runs/missing-seed1 --out runs/objectives

Score each run first, on the same cells: `gm-train eval RUN FILE...`. Runs that differ in run.seed alone are one group;
each group is compared with that of the first run. More: docs/evaluation.md.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `compare`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "compare",
        help="put runs side by side: settings, compute, scores",
        description="Put runs side by side: the settings that differ, compute, and scores with their differences.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories, two or more")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for compare.md, compare.json and compare.png (default: none)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train compare`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from gm_train.comparison.compare_runs import compare_runs
    from gm_train.comparison.comparison_table import render_text

    comparison = compare_runs(arguments.runs)
    print(render_text(comparison.results), end="")
    if arguments.out is not None:
        print("written: " + ", ".join(map(str, comparison.write(arguments.out))))
    return 0

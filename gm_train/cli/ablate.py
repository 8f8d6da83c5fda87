"""`gm-train ablate`: run an ablation, several variants with several seeds, and write its page."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  gm-train ablate
  gm-train ablate objectives-blood
  gm-train ablate objectives-blood --variants masked missing --seeds 0 --out runs/first-look
  gm-train ablate objectives-gut --data gut.h5ad --jobs 2

The same command continues after what is finished. Definitions are in configs/ablations; more: docs/ablations.md.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `ablate`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "ablate",
        help="train and score the variants of an ablation, and write its page",
        description="Train each variant of an ablation with each seed, score it on test cells beside controls, and\n"
        "write a page. Without NAME, list the ablations and their questions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="an ablation, or the .yaml file of one")
    parser.add_argument("--data", type=Path, metavar="FILE", help="count file, for an ablation that asks for one")
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="only these variants (default: all)")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="only these seeds (default: all of the definition)",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at the same time, which share the threads (%(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/ablations/NAME)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train ablate`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from data_shards.errors import OptionError
    from gm_train.ablation.definition import FOLDER, PBMC
    from gm_train.ablation.definition_file import find_definition, read_definition

    if arguments.name is None:
        paths = sorted(FOLDER.glob("*.yaml"))
        if not paths:
            raise OptionError(
                f"no ablations in {FOLDER}: give this command where that folder is, or the path of a .yaml"
            )
        width = max(len(path.stem) for path in paths)
        for path in paths:
            print(f"{path.stem.ljust(width)}  {read_definition(path).question.strip()}")
        return 0
    if arguments.jobs < 1:
        raise OptionError(f"--jobs {arguments.jobs}: must be at least 1")
    path = find_definition(arguments.name)
    definition = read_definition(path)

    import os

    from gm_train.ablation.page import ablation_results, render_text, write_page
    from gm_train.ablation.planned_runs import plan_runs
    from gm_train.ablation.run_ablation import prepare_runs, run_all
    from gm_train.cli.pbmc_file import pbmc_file

    planned = plan_runs(path, definition, arguments.variants, arguments.seeds)
    out = arguments.out or Path("runs/ablations") / path.stem
    data = arguments.data
    if definition.cells.source == PBMC:
        if data is not None:
            raise OptionError(f"--data {data}: the cells of this ablation come with scanpy: leave --data out")
        data = pbmc_file()
    print(f"{definition.question.strip()}\n{len(planned)} runs in {out}", flush=True)
    runs = prepare_runs(definition, planned, data, out)
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    run_all(runs, arguments.jobs, max(1, threads // arguments.jobs))
    results, scored = ablation_results(path.stem, definition, runs, _words(arguments))
    print(render_text(results), end="")
    print("written: " + ", ".join(map(str, write_page(results, scored, out))))
    return 0


def _words(arguments: argparse.Namespace) -> list[str]:
    """The command as it was given, after `gm-train`."""
    words = ["ablate", arguments.name]
    for option in ("data", "variants", "seeds", "out"):
        value = getattr(arguments, option)
        if value:
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return words + (["--jobs", str(arguments.jobs)] if arguments.jobs > 1 else [])

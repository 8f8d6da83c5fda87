"""Options that several `gm-train data` commands share, and their conversion for the code in `data_shards`."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORMATS = argparse.RawDescriptionHelpFormatter


def add_command(commands: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    """Add a command to `gm-train data`.

    Args:
        commands: the subparsers of `gm-train data`.
        name: name of the command.
        text: its help: an imperative phrase in lower case, without a full stop.
        example: a command line, shown at the end of its help.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=_FORMATS,
    )
    return parser


def add_counts(parser: argparse.ArgumentParser) -> None:
    """Add the count files and the options of how to read them."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="count files: AnnData (.h5ad) or AnnData-Zarr folders"
    )
    add_count_options(parser)


def add_count_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of how to read counts."""
    group = parser.add_argument_group("counts")
    group.add_argument("--layer", help="layer with the counts (default: X)")
    group.add_argument("--raw", action="store_true", help="read raw/X instead of X")
    group.add_argument(
        "--counts-from",
        choices=["log1p"],
        help="recover counts from log1p of scaled counts: expm1, divided by the smallest value of the cell",
    )
    group.add_argument("--allow-non-integer", action="store_true", help="accept counts that are not whole numbers")
    group.add_argument("--gene-column", help="column of var with gene ids or symbols (default: the index of var)")
    group.add_argument(
        "--min-mapped",
        type=share,
        default=0.5,
        help="refuse a file if less than this share of its genes can be mapped, 0 to 1 (default 0.5)",
    )


def count_options(arguments: argparse.Namespace) -> Any:
    """Return the options of `add_count_options` as `data_shards.counts.count_options.CountOptions`."""
    from data_shards.counts.count_options import CountOptions

    return CountOptions(
        layer=arguments.layer,
        raw=arguments.raw,
        counts_from=arguments.counts_from,
        gene_column=arguments.gene_column,
        allow_non_integer=arguments.allow_non_integer,
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options for what does the work: local processes, a Dask scheduler's workers, or SLURM jobs."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--workers", type=positive, default=1, help="number of processes (default 1); it does not change the result"
    )
    group.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, such as tcp://head:8786; they must see the same files",
    )
    group.add_argument(
        "--slurm",
        nargs="+",
        metavar="WORD",
        help="run on SLURM jobs, which are submitted for this command and end with it. Settings are cluster.KEY=value "
        "or .yaml files, as for `gm-train launch`. Example: cluster.nodes=4 (number of jobs) cluster.cpus_per_task=8 "
        "(workers per job) cluster.memory=32G (per job) cluster.partition=cpu cluster.time=04:00:00",
    )


@contextmanager
def engine(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Provide what `add_engine` chose, as arguments of the functions in `data_shards`, for the length of the work."""
    if arguments.slurm is None:
        if arguments.workers > 1:
            from data_shards.workers.workers import start_server

            start_server()  # before this process imports the same modules
        yield {"workers": arguments.workers, "dask": arguments.dask}
        return
    from cluster.dask_workers import workers_on_slurm
    from cluster.launch_problems import job_problems
    from gm_train.config.check import ConfigError
    from gm_train.config.load import load_cluster

    config = load_cluster(arguments.slurm)
    problems = job_problems(config)
    if problems:
        raise ConfigError(problems)
    with workers_on_slurm(config.cluster, arguments.out) as address:
        yield {"dask": address}


def add_splits(parser: argparse.ArgumentParser, validation: float = 0.1, test: float = 0.0) -> None:
    """Add the options of which cells are held out.

    Args:
        parser: of the command.
        validation, test: default shares.
    """
    splits = parser.add_argument_group("held-out cells")
    splits.add_argument(
        "--split-by",
        choices=["auto", "donor", "dataset", "cell", "none"],
        default="auto",
        help="what is held out as a whole (default auto: donors, if obs names two or more, else nothing); "
        "cell divides the cells of a donor and is the weakest test",
    )
    splits.add_argument(
        "--donor-key", help="column of obs with donors (default: the first of donor_id, donor, patient, individual)"
    )
    splits.add_argument(
        "--validation",
        type=share,
        default=validation,
        help="approximate share of validation cells (default %(default)s)",
    )
    splits.add_argument(
        "--test", type=share, default=test, help="approximate share of test cells (default %(default)s)"
    )
    splits.add_argument("--split-seed", type=int, default=0, help="seed of the split (default 0)")


def split_options(arguments: argparse.Namespace) -> Any:
    """Return the options of `add_splits` as `data_shards.prepare.splits.SplitOptions`."""
    from data_shards.prepare.splits import SplitOptions

    return SplitOptions(
        by=arguments.split_by,
        donor_key=arguments.donor_key,
        validation=arguments.validation,
        test=arguments.test,
        seed=arguments.split_seed,
    )


def positive(text: str) -> int:
    """Parse a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def names(text: str) -> list[str]:
    """Parse names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g}: must be between 0 and 1")
    return value

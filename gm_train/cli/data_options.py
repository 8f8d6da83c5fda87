"""Options that several of the `gm-train data` commands have, and what the data code takes for them."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORMATS = argparse.RawDescriptionHelpFormatter


def add_command(commands: Any, name: str, text: str, example: str) -> argparse.ArgumentParser:
    """A command of `gm-train data`, with an example at the end of its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=_FORMATS,
    )
    return parser


def add_counts(parser: argparse.ArgumentParser) -> None:
    """Options on how the counts of the files are read."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="AnnData file (.h5ad) or AnnData-Zarr folder"
    )
    group = parser.add_argument_group("counts")
    group.add_argument("--layer", help="layer with the counts (default: X)")
    group.add_argument("--raw", action="store_true", help="read raw/X instead of X")
    group.add_argument(
        "--counts-from",
        choices=["log1p"],
        help="take log1p of scaled counts back to counts: expm1, over the cell's smallest",
    )
    group.add_argument("--allow-non-integer", action="store_true", help="accept counts that are not whole")
    group.add_argument("--gene-column", help="column of var with gene ids or symbols (default: its index)")
    group.add_argument(
        "--min-mapped",
        type=share,
        default=0.5,
        help="refuse a file when a smaller share of its genes is mapped (default 0.5)",
    )


def count_options(arguments: argparse.Namespace) -> Any:
    """What `add_counts` chose: `data_shards.counts.count_file.CountOptions`."""
    from data_shards.counts.count_options import CountOptions

    return CountOptions(
        layer=arguments.layer,
        raw=arguments.raw,
        counts_from=arguments.counts_from,
        gene_column=arguments.gene_column,
        allow_non_integer=arguments.allow_non_integer,
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What runs the work: processes of this machine, or the workers of a Dask scheduler."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--workers", type=positive, default=1, help="processes (default 1); the result is the same for any"
    )
    group.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler (tcp://head:8786), which see the same file system",
    )
    group.add_argument(
        "--slurm",
        nargs="+",
        metavar="WORD",
        help="run on worker jobs under SLURM, which end with this command: cluster.KEY=value or .yaml files as for "
        "`gm-train launch`, such as cluster.nodes=4 (jobs) cluster.cpus_per_task=8 (workers of each) "
        "cluster.memory=32G (of each job) cluster.partition=cpu cluster.time=04:00:00",
    )


@contextmanager
def engine(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What `add_engine` chose, as the data code takes it, for the length of the work."""
    if arguments.slurm is None:
        if arguments.workers > 1:
            from data_shards.workers.workers import start_server

            start_server()  # before this process imports the same
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


def add_splits(parser: argparse.ArgumentParser) -> None:
    """Options on which cells are held out."""
    splits = parser.add_argument_group("held-out cells")
    splits.add_argument(
        "--split-by",
        choices=["auto", "donor", "dataset", "cell", "none"],
        default="auto",
        help="auto: whole donors where obs names two or more, else nothing is held out; cell is the weakest",
    )
    splits.add_argument(
        "--donor-key", help="column of obs with donors (default: donor_id, donor, patient or individual)"
    )
    splits.add_argument("--validation", type=share, default=0.1, help="share of validation cells, about (default 0.1)")
    splits.add_argument("--test", type=share, default=0.0, help="share of test cells, about (default 0)")
    splits.add_argument("--split-seed", type=int, default=0, help="of the drawing (default 0)")


def split_options(arguments: argparse.Namespace) -> Any:
    """What `add_splits` chose: `data_shards.prepare.splits.SplitOptions`."""
    from data_shards.prepare.splits import SplitOptions

    return SplitOptions(
        by=arguments.split_by,
        donor_key=arguments.donor_key,
        validation=arguments.validation,
        test=arguments.test,
        seed=arguments.split_seed,
    )


def positive(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 0 and 1")
    return value

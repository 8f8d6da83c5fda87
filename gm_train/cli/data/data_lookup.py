"""`gm-train data lookup`: were these cells in the training data?"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gm_train.cli.data_options import add_command, add_count_options, count_options

if TYPE_CHECKING:
    from data_shards.inspect.lookup import KnownCells


def add_lookup(commands: Any) -> None:
    """Add `lookup`; it sets `run`, which returns the exit code."""
    text = "find the cells of a file in a token store, or in the data that a checkpoint was trained on"
    example = (
        "gm-train data lookup runs/demo benchmark.h5ad --out found.csv\n"
        "  gm-train data lookup store.zarr benchmark.h5ad --layer counts"
    )
    parser = add_command(commands, "lookup", text, example)
    parser.add_argument(
        "where", metavar="STORE_OR_CHECKPOINT", help="token store (folder or URL), checkpoint, or run directory"
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="count file: AnnData (.h5ad) or an AnnData-Zarr folder")
    add_count_options(parser)
    parser.add_argument("--store", help="store of the checkpoint, if it is not where it was in training")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.csv",
        help="write a table with a row for each cell of FILE: where it was found",
    )
    parser.set_defaults(run=_lookup)


def _lookup(arguments: argparse.Namespace) -> int:
    from data_shards.files.atomic import refuse_existing
    from data_shards.inspect.lookup import look_up
    from data_shards.inspect.lookup_report import describe, write_table

    options = count_options(arguments)
    if arguments.out is not None:
        refuse_existing(arguments.out)
    known = _known(arguments.where, arguments.store)
    found = look_up(arguments.file, known, options, arguments.min_mapped)
    print("\n".join(describe(found, known)))
    if arguments.out is not None and found.cells is None:
        print(f"{arguments.out}: not written, because cells were not looked up")
    elif arguments.out is not None:
        write_table(found, known, options, arguments.out)
        print(f"{arguments.out}: a row for each cell")
    return 0


def _known(where: str, store: str | None) -> "KnownCells":
    """The cells of a store, or of a checkpoint or a run's newest one."""
    from data_shards.errors import DataError, OptionError
    from data_shards.files.location import location_of
    from data_shards.inspect.lookup import KnownCells

    path = location_of(where)
    if isinstance(path, Path) and not (path / "zarr.json").is_file():
        if not (path / "COMMIT").is_file() and not (path / "checkpoints").is_dir():
            raise DataError(
                f"{path}: neither a token store nor a checkpoint or run directory: give one of these, and FILE after it"
            )
        from gm_train.checkpoint.find import open_checkpoint
        from gm_train.checkpoint.known_cells import known_cells

        return known_cells(open_checkpoint(path), store)
    if store is not None:
        raise OptionError(f"--store {store}: only for a checkpoint, and {where} is a store: leave it out")
    return KnownCells.of_store(path)

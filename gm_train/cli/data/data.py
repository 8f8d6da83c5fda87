"""`gm-train data`: prepare data, from count files to a token store."""

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from data_shards.simulate.atlas_options import AtlasOptions
from gm_train.cli.data.data_lookup import add_lookup
from gm_train.cli.data_options import (
    add_command,
    add_counts,
    add_engine,
    add_splits,
    count_options,
    engine,
    names,
    positive,
    share,
    split_options,
)

_EPILOG = """\
examples:
  gm-train data medians gut.h5ad skin.h5ad --out medians.zarr
  gm-train data shards gut.h5ad skin.h5ad --medians medians.zarr --out cells.zarr
  gm-train data inspect cells.zarr
"""


def add_parser(subparsers: Any) -> None:
    """Add `data` and its subcommands; each sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "data",
        help="prepare data: from counts to a token store",
        description="Prepare data: from counts to a token store.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_simulate(commands)
    _add_medians(commands)
    _add_shards(commands)
    _add_import(commands)
    _add_inspect(commands)
    _add_verify(commands)
    add_lookup(commands)


def _add_simulate(commands: Any) -> None:
    example = "gm-train data simulate --out atlas.h5ad --cells 20000 --genes 4000 --cell-types 12"
    parser = add_command(commands, "simulate", "simulate an atlas with known cell types and gene programmes", example)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="new .h5ad file; the programmes are written beside it as .gmt, regulators and targets as .regulation.tsv",
    )
    helps = {
        "cells": "number of cells",
        "genes": "number of genes",
        "cell_types": "number of cell types",
        "programmes": "number of gene programmes",
        "donors": "number of donors",
        "batches": "number of batches; each donor is in one batch",
        "genes_per_programme": "number of genes of a programme",
        "programmes_per_type": "number of programmes that a cell type uses",
        "counts_per_cell": "median number of molecules of a cell",
        "dropout": "probability of losing a gene that has one molecule",
        "seed": "seed of all random numbers",
        "sorted": "put the cells of a type next to each other: the worst case for mixing",
        "type_skew": "how unequal types are: of K types the commonest is K^SKEW times as frequent as the rarest",
        "regulators": "number of genes that drive others; half of them are driven by one of the other half",
        "targets_per_regulator": "number of genes that a regulator drives, besides other regulators",
        "regulation_strength": "effect of a regulator on a target, in units of the target's own variation",
    }
    for field in fields(AtlasOptions):
        default: Any = field.default
        if default is False:
            parser.add_argument(f"--{field.name}", action="store_true", help=helps[field.name])
            continue
        text = f"{helps[field.name]} (default {default:g})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(default), default=default, help=text)
    parser.add_argument(
        "--compression", default="lzf", help="compression of the counts: lzf, gzip or none (default lzf)"
    )
    parser.add_argument(
        "--workers", type=positive, default=1, help="number of processes (default 1); it does not change the result"
    )
    parser.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    from data_shards.simulate.write_atlas import regulation_path, write_atlas

    options = AtlasOptions(**{field.name: getattr(arguments, field.name) for field in fields(AtlasOptions)})
    gmt = write_atlas(arguments.out, options, arguments.compression, arguments.workers)
    print(f"{arguments.out}: {options.cells:,} cells of {options.cell_types} types, {options.genes:,} genes")
    print(f"{gmt}: {options.programmes} gene programmes")
    if options.regulators:
        print(f"{regulation_path(arguments.out)}: targets of {options.regulators} regulators")
    return 0


def _add_medians(commands: Any) -> None:
    example = "gm-train data medians gut.h5ad placenta.h5ad --out medians.zarr --gene-table genes.csv.gz"
    parser = add_command(
        commands, "medians", "compute the median non-zero expression of each gene over data sets", example
    )
    add_counts(parser)
    parser.add_argument("--out", type=Path, required=True, help="new medians file (.zarr)")
    parser.add_argument(
        "--gene-table", type=Path, help="CSV with Ensembl id, symbol, …: maps symbols to ids; a copy is kept in --out"
    )
    add_engine(parser)
    parser.add_argument(
        "--exact", action="store_true", help="exact medians instead of t-digests; --add cannot extend them later"
    )
    parser.add_argument("--add", action="store_true", help="add the files to an existing --out")
    parser.set_defaults(run=_medians)


def _medians(arguments: argparse.Namespace) -> int:
    with engine(arguments) as chosen:
        from data_shards.counts.gene_ids import GeneTable
        from data_shards.medians.make_medians import make_medians

        make_medians(
            arguments.files,
            arguments.out,
            count_options(arguments),
            GeneTable.read_csv(arguments.gene_table) if arguments.gene_table else None,
            min_mapped=arguments.min_mapped,
            exact=arguments.exact,
            add=arguments.add,
            **chosen,
        )
    return 0


def _add_shards(commands: Any) -> None:
    example = "gm-train data shards gut.h5ad placenta.h5ad --medians medians.zarr --out store.zarr --top-k 2048"
    parser = add_command(commands, "shards", "rank the genes of every cell into a token store", example)
    add_counts(parser)
    parser.add_argument(
        "--medians", type=Path, help="output of `gm-train data medians`; not needed with --add or --like"
    )
    parser.add_argument(
        "--like", type=Path, metavar="CHECKPOINT", help="rank the cells for this model: with its genes and medians"
    )
    parser.add_argument("--out", type=Path, required=True, help="new token store (.zarr)")
    parser.add_argument("--add", action="store_true", help="add the files to an existing --out, ranked in the same way")
    parser.add_argument("--top-k", type=positive, help="maximal number of tokens of a cell (default 2048)")
    parser.add_argument("--genes", type=Path, help="use only the genes in this file: ids or symbols, one per line")
    parser.add_argument(
        "--deny-genes", type=Path, help="leave out the genes in this file: ids or symbols, one per line"
    )
    parser.add_argument(
        "--dither",
        action="store_true",
        help="break ties between equal counts: add a value in ± 0.5, drawn by a hash, to each count before ranking",
    )
    parser.add_argument(
        "--keep-values",
        action="store_true",
        help="store count / total * 10,000 / median of each token, too (with --dither: of dithered counts)",
    )
    parser.add_argument("--obs-columns", type=names, help="columns of obs to keep, such as a,b,c (default: all)")
    add_engine(parser)
    filters = parser.add_argument_group("filters")
    filters.add_argument(
        "--min-genes", type=int, default=0, help="leave out cells with fewer detected genes (default: off)"
    )
    filters.add_argument(
        "--min-counts", type=float, default=0.0, help="leave out cells with fewer counts (default: off)"
    )
    filters.add_argument(
        "--max-mito",
        type=share,
        help="leave out cells with a larger share of counts in MT- genes, 0 to 1 (default: off)",
    )
    filters.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN",
        help="keep only cells where this boolean column of obs is true, such as is_primary_data; repeatable",
    )
    add_splits(parser)
    parser.set_defaults(run=partial(_shards, parser))


def _shards(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.like is not None and (arguments.medians is not None or arguments.add):
        parser.error("--like: the model has medians, and the store must be new: leave out --medians and --add")
    if arguments.medians is None and arguments.like is None and not arguments.add:
        parser.error("a new store needs --medians, or --like with a model")
    with engine(arguments) as chosen:
        from data_shards.counts.filters import CellFilter
        from data_shards.prepare.make_store import make_store

        make_store(
            arguments.files,
            arguments.medians,
            arguments.out,
            count_options(arguments),
            top_k=arguments.top_k,
            dither=arguments.dither,
            genes_file=arguments.genes,
            deny_file=arguments.deny_genes,
            keep_values=arguments.keep_values,
            cells=CellFilter(arguments.min_genes, arguments.min_counts, arguments.max_mito, tuple(arguments.where)),
            obs_columns=arguments.obs_columns,
            splits=split_options(arguments),
            min_mapped=arguments.min_mapped,
            add=arguments.add,
            like=_tokenizer(arguments.like),
            **chosen,
        )
    return 0


def _tokenizer(checkpoint: Path | None) -> Any:
    """The tokenizer of a checkpoint, or of a run's newest one; None for None."""
    if checkpoint is None:
        return None
    from data_shards.tokens.tokenizer import Tokenizer
    from gm_train.checkpoint.find import open_checkpoint

    return Tokenizer.load(open_checkpoint(checkpoint).path / "tokenizer")


def _add_import(commands: Any) -> None:
    example = (
        "gm-train data import genecorpus_30M_2048.dataset --tokens token_dictionary.pkl \\\n"
        "    --medians gene_median_dictionary.pkl --out genecorpus.zarr --donor-key individual"
    )
    parser = add_command(commands, "import", "make a token store of cells that are ranked already", example)
    parser.add_argument(
        "corpus",
        nargs="+",
        type=Path,
        metavar="FOLDER_OR_FILE",
        help="Parquet or Arrow files with a column input_ids, or a folder of them as saved by Hugging Face datasets; "
        "together they become one data set",
    )
    parser.add_argument("--tokens", type=Path, required=True, help="dictionary from gene id to token: JSON or pickle")
    parser.add_argument(
        "--medians",
        type=Path,
        required=True,
        help="dictionary from gene id to the non-zero median that the cells were ranked with: JSON or pickle",
    )
    parser.add_argument("--out", type=Path, required=True, help="new token store (.zarr)")
    parser.add_argument(
        "--add", action="store_true", help="add the data set to an existing --out with the same medians"
    )
    parser.add_argument("--name", help="name of the data set (default: name of the folder or file)")
    parser.add_argument(
        "--top-k", type=positive, help="maximal number of tokens of a cell (default 2048; with --add: as in the store)"
    )
    parser.add_argument(
        "--obs-columns", type=names, help="columns to keep as annotations, such as a,b,c (default: all)"
    )
    add_splits(parser)
    parser.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> int:
    from data_shards.corpora.import_corpus import import_corpus

    import_corpus(
        arguments.corpus,
        arguments.tokens,
        arguments.medians,
        arguments.out,
        name=arguments.name,
        top_k=arguments.top_k,
        obs_columns=arguments.obs_columns,
        splits=split_options(arguments),
        add=arguments.add,
    )
    return 0


def _add_inspect(commands: Any) -> None:
    example = "gm-train data inspect store.zarr --plot store.png"
    parser = add_command(commands, "inspect", "print what a token store contains, or draw it with --plot", example)
    parser.add_argument("store", metavar="STORE", help="token store: a folder, or a URL (http(s)://, s3:// or gs://)")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the lengths of cells, data sets and splits, how full rows are, and how common genes are",
    )
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from data_shards.errors import DataError, OptionError
    from data_shards.inspect.store_summary import StoreSummary

    if arguments.plot is not None and arguments.plot.suffix.lower() not in ("", ".png"):
        raise OptionError(f"--plot {arguments.plot}: only PNG is supported: name it .png")
    summary = StoreSummary.read(arguments.store)
    print("\n".join(summary.describe()))
    if arguments.plot is not None:
        from gm_train.cli.data.store_picture import draw_store

        try:
            arguments.plot.parent.mkdir(parents=True, exist_ok=True)
            draw_store(summary, arguments.plot)
        except OSError as error:
            raise DataError(f"{arguments.plot}: cannot be written ({error}): choose another --plot") from error
        print(f"{arguments.plot}: picture of the store")
    return 0


def _add_verify(commands: Any) -> None:
    text = "read a whole token store and name every damaged file and chunk"
    parser = add_command(commands, "verify", text, "gm-train data verify store.zarr")
    parser.add_argument("store", metavar="STORE", help="token store: a folder, or a URL (http(s)://, s3:// or gs://)")
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from data_shards.inspect.verify import find_damage

    problems = find_damage(arguments.store)
    for problem in problems:
        print(problem)
    print(
        f"{arguments.store}: "
        + (f"{len(problems)} problems: build the store again" if problems else "all is as it was written")
    )
    return 1 if problems else 0

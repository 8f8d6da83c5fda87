"""`gm-train embed`: write a copy of an AnnData file with a vector for each cell."""

import argparse
from pathlib import Path

from gm_train.cli.data_options import add_count_options, count_options

_EPILOG = """\
examples:
  gm-train embed runs/demo cells.h5ad cells-embedded.h5ad
  gm-train embed runs/atlas/checkpoints/step-00010000 cells.zarr embedded.zarr --layer counts --pool rank --genes

OUT is a copy of IN with obsm["X_genemamba"] (float32, cells x d_model) and uns["genemamba"] (what made it).
IN and OUT are .h5ad files or AnnData-Zarr folders, in any combination. Files of any size fit: memory does not grow
with the number of cells. A cell without a gene of the model gets NaN.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `embed`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "embed",
        help="write a copy of an AnnData file with a vector for each cell",
        description="Embed the cells of an AnnData file with a trained model, and write a copy of the file with them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory for its newest one"
    )
    parser.add_argument("source", type=Path, metavar="IN", help="raw counts: .h5ad file or AnnData-Zarr folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="new .h5ad file or .zarr folder")
    parser.add_argument(
        "--pool",
        choices=["mean", "max", "rank"],
        default="mean",
        help="mean over the cell's genes (default), max, or a mean weighted by 1/log2(1 + rank)",
    )
    parser.add_argument("--genes", action="store_true", help="also write varm['X_genemamba_genes'], a vector per gene")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], help="default: fp32 on a CPU, the run's trainer.precision on a GPU"
    )
    add_count_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train embed`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from gm_train.embedding.embed_file import EmbedOptions, embed_file

    options = EmbedOptions(
        arguments.pool, arguments.precision, arguments.genes, count_options(arguments), arguments.min_mapped
    )
    done = embed_file(
        arguments.checkpoint, arguments.source, arguments.out, options, lambda line: print(line, flush=True)
    )
    if done.n_empty:
        print(f"{done.n_empty:,} cells have no gene of the model: their vectors are NaN")
    cells_per_s, tokens_per_s = done.n_cells / done.seconds, done.n_tokens / done.seconds
    print(
        f"{done.n_cells:,} cells in {done.seconds:.1f} s: {cells_per_s:,.0f} cells/s, {tokens_per_s:,.0f} tokens/s; "
        f"{done.model_seconds / done.seconds:.0%} of the time in the model"
    )
    print(f"written: {arguments.out}")
    return 0

"""`gm-train predict`: label the cells of a file with a fine-tuned model."""

import argparse
from pathlib import Path

from gm_train.cli.data_options import add_count_options, count_options

_EPILOG = """\
examples:
  gm-train predict runs/cell-types new.h5ad new-labelled.h5ad
  gm-train predict runs/cell-types new.h5ad labels.csv --threshold 0.5

OUT is a copy of IN with obs["genemamba_label"], obs["genemamba_probability"], obsm["genemamba_probabilities"] and
uns["genemamba_annotation"]; or a .csv file with a line for each cell. A cell whose most probable class is below the
threshold is "unknown". The threshold was chosen on validation cells: among cells drawn like them, at most the run's
task.max_error of the labels are wrong, with 90 % confidence. Cells of other donors or tissues may do worse.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `predict`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "predict",
        help="label the cells of a file with a fine-tuned model",
        description="Label the cells of an AnnData file with a model that `gm-train annotate` has fine-tuned.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="a run of `gm-train annotate` for its best checkpoint, or a checkpoint",
    )
    parser.add_argument("source", type=Path, metavar="IN", help="raw counts: .h5ad file or AnnData-Zarr folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="new .h5ad file, .zarr folder or .csv file")
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="label cells from this probability on (default: calibrated)"
    )
    add_count_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train predict`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from gm_train.annotation.predict_file import PredictOptions, predict_file
    from gm_train.model.classes import UNKNOWN

    options = PredictOptions(arguments.threshold, count_options(arguments), arguments.min_mapped)
    done = predict_file(
        arguments.checkpoint, arguments.source, arguments.out, options, lambda line: print(line, flush=True)
    )
    for number in (-done.n_of_class).argsort(kind="stable"):
        if done.n_of_class[number]:
            print(f"{done.n_of_class[number]:>12,}  {done.names[number]}")
    n_unknown = done.n_cells - int(done.n_of_class.sum())
    empty = f", {done.n_empty:,} of them without a gene of the model" if done.n_empty else ""
    print(f"{n_unknown:>12,}  {UNKNOWN}{empty}")
    print(f"{done.n_cells:,} cells in {done.seconds:.1f} s: {done.n_cells / done.seconds:,.0f} cells/s")
    print(f"written: {arguments.out}")
    return 0

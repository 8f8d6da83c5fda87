"""`gm-train export`: write a checkpoint's weights as a folder that works without gm-train."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  gm-train export runs/demo exported --license cc-by-4.0
  gm-train export runs/atlas/checkpoints/step-00010000 exported --store /data/atlas.zarr
  gm-train export runs/atlas as-published --format published

The folder has weights (safetensors), tokenizer, a model card and the model in one file:
  python -c "import sys; sys.path.insert(0, 'exported'); from modeling_genemamba import load; print(load('exported'))"
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "export",
        help="write a checkpoint's weights as a folder that works without gm-train",
        description="Write a checkpoint's weights, tokenizer, model card and a self-contained model into a new folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory for its newest one"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must not exist")
    parser.add_argument(
        "--format",
        choices=("gm-train", "published"),
        default="gm-train",
        help="published: the layout of the published GeneMamba, where the model allows it (default: %(default)s)",
    )
    parser.add_argument(
        "--store", help="token store, a folder or a URL, whose data sets the card lists (default: the run's data.store)"
    )
    parser.add_argument("--license", default="", metavar="NAME", help="licence for the card, such as cc-by-4.0")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train export`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from gm_train.weights.export_weights import export_weights

    published = arguments.format == "published"
    export_weights(arguments.checkpoint, arguments.out, published, arguments.store, arguments.license, print)
    return 0

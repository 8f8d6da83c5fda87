"""`gm-train import`: turn exported or published weights into a checkpoint."""

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  gm-train import exported weights
  gm-train import GeneMamba/model.safetensors weights --vocabulary gene_tokens.json --medians medians.json
  gm-train import GeneMamba weights --vocabulary tokenizer.json --medians none --aggregation gate
  gm-train fit configs/demo.yaml run.dir=runs/on model.init_from=weights

OUT is a checkpoint: eval and export read it, and a new run begins with it (model.init_from). It has no optimizer state,
so no run resumes from it. Files of weights are .safetensors, or .bin as torch writes them; no pickle is run.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `import`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "import",
        help="turn exported or published weights into a checkpoint",
        description="Turn a folder that `gm-train export` wrote, or weights in the layout of the published GeneMamba,\n"
        "into a checkpoint. Sizes and layout are found from the weights.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="an exported folder, or published weights")
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint to write; it must not exist")
    published = parser.add_argument_group("options for the published layout")
    published.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="JSON of gene id -> token, or Hugging Face's tokenizer.json (default: token_dictionary.json of WEIGHTS)",
    )
    published.add_argument(
        "--medians",
        metavar="FILE|none",
        help="JSON of gene id -> non-zero median; none: rank raw counts (default: medians.json beside WEIGHTS)",
    )
    published.add_argument(
        "--aggregation",
        choices=("gate", "concat", "mean", "sum"),
        help="how the directions are joined (default: mode in the config.json beside WEIGHTS)",
    )
    published.add_argument("--top-k", type=int, default=2048, metavar="N", help="most tokens of a cell (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train import`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from gm_train.weights.import_weights import PublishedOptions, import_weights

    options = PublishedOptions(arguments.vocabulary, arguments.medians, arguments.aggregation, arguments.top_k)
    import_weights(arguments.weights, arguments.out, options, print)
    return 0

"""`gm-train annotate`: fine-tune a model for a label of the cells."""

import argparse
import os
from pathlib import Path
from typing import Any

from gm_train.cli.data_options import add_count_options, add_splits, count_options, positive, split_options

_EPILOG = """\
examples:
  gm-train annotate runs/demo labelled.h5ad --label cell_type --out runs/cell-types
  gm-train annotate runs/atlas a.h5ad b.h5ad --label cell_type --donor-key donor --out runs/types --set optim.lr=1e-4
  gm-train predict runs/cell-types new.h5ad new-labelled.h5ad

It makes OUT/store.zarr from the files, ranked for the model, trains there as `gm-train fit` does (the settings are in
OUT/annotate.yaml; --set changes them), and scores the result beside linear probes of the pretrained embedding,
of PCA and of random weights. The same command again resumes it.
"""
STORE, SETTINGS, SCORES = "store.zarr", "annotate.yaml", "annotation"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `annotate`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "annotate",
        help="fine-tune a model for a label of the cells",
        description="Fine-tune a model for a label of the cells, and score it on held-out cells.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory for its newest one"
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="labelled raw counts: .h5ad files or AnnData-Zarr folders"
    )
    parser.add_argument("--label", required=True, metavar="KEY", help="column of obs with the label")
    parser.add_argument("--out", type=Path, required=True, help="run directory of the fine-tuning")
    parser.add_argument(
        "--protocol",
        choices=["default", "published"],
        default="default",
        help="published: that of GeneMamba's code, as far as we could read it (5 epochs, unweighted, MLP)",
    )
    parser.add_argument("--frozen", action="store_true", help="train the classifier alone, not the model below it")
    parser.add_argument("--epochs", type=positive, metavar="N", help="how often each training cell is read, at most")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", dest="settings", help="further settings of `gm-train fit`"
    )
    parser.add_argument("--workers", type=positive, default=1, help="processes that rank the cells (default 1)")
    parser.add_argument(
        "--max-cells", type=positive, default=5_000, metavar="N", help="cells to score with, at most (%(default)s)"
    )
    add_count_options(parser)
    add_splits(parser)
    parser.set_defaults(run=run, validation=0.2, test=0.2)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train annotate`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from gm_train.checkpoint.find import open_checkpoint
    from gm_train.cli.fit import train

    checkpoint = open_checkpoint(arguments.checkpoint)
    print(f"checkpoint {checkpoint.path}, step {checkpoint.step:,}", flush=True)
    manifest = _store(arguments, checkpoint)
    path = _write_settings(arguments, checkpoint, manifest)
    print(f"$ gm-train fit {' '.join([str(path), *arguments.settings])}", flush=True)
    if code := train([str(path), *arguments.settings]):
        return code
    _score(arguments)
    return 0


def _store(arguments: argparse.Namespace, checkpoint: Any) -> Any:
    """Make the store, or check that an earlier start of this command has made it of the same files."""
    from data_shards.errors import DataError
    from data_shards.files.atomic import hash_path
    from data_shards.prepare.make_store import make_store
    from data_shards.store.manifest import Manifest
    from data_shards.tokens.tokenizer import Tokenizer

    store, splits = arguments.out / STORE, split_options(arguments)
    tokenizer = Tokenizer.load(checkpoint.path / "tokenizer")
    if not store.exists():
        arguments.out.mkdir(parents=True, exist_ok=True)
        return make_store(
            arguments.files,
            None,
            store,
            count_options(arguments),
            splits=splits,
            min_mapped=arguments.min_mapped,
            workers=arguments.workers,
            like=tokenizer,
        )
    manifest = Manifest.load(store)
    made_of = [(entry.source_hash, entry.splits) for entry in manifest.datasets]
    if (
        made_of != [(hash_path(file), splits.record()) for file in arguments.files]
        or manifest.tokenizer_hash != tokenizer.hash
    ):
        raise DataError(
            f"{store}: was made of other files, with another split or for another model: choose another --out"
        )
    print(f"the store {store} exists already")
    return manifest


def _write_settings(arguments: argparse.Namespace, checkpoint: Any, manifest: Any) -> Path:
    import yaml

    from data_shards.files.atomic import replace_file
    from gm_train.annotation.fine_tuning import PROTOCOLS, fine_tuning_settings

    settings = fine_tuning_settings(
        checkpoint, manifest, PROTOCOLS[arguments.protocol], arguments.label, arguments.frozen, arguments.epochs
    )
    out = Path(os.path.abspath(arguments.out))
    settings |= {"run.dir": str(out), "data.store": str(out / STORE)}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in sorted(settings.items()):
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    path: Path = arguments.out / SETTINGS
    replace_file(path, yaml.safe_dump(sections, sort_keys=False))
    return path


def _score(arguments: argparse.Namespace) -> None:
    import torch

    from data_shards.store.manifest import TEST, VALIDATION, Manifest
    from data_shards.workers.progress import Progress
    from gm_train.annotation.annotator_scores import Annotator, n_scores, score_annotator, write_scores
    from gm_train.annotation.annotator_table import draw_confusion, render_markdown, render_scores
    from gm_train.annotation.class_probabilities import open_annotator, threshold_of
    from gm_train.evaluation.cells import read_cells
    from gm_train.run.mlflow_mirror import send_report
    from gm_train.train.run_report import write_report

    store, out = arguments.out / STORE, arguments.out
    checkpoint, model, tokenizer, config, classes = open_annotator(out)
    calibration, threshold = threshold_of(checkpoint, classes, None)
    has_test = any(entry.n_test for entry in Manifest.load(store).datasets)
    split, name = (TEST, "test") if has_test else (VALIDATION, "validation")
    cells = read_cells(store, arguments.files, tokenizer, arguments.label, arguments.max_cells, split)
    ranks = "dithered" if tokenizer.dither else "plain"
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    annotator = Annotator(checkpoint, model, config, classes, calibration, threshold)
    with Progress(total=n_scores(config), desc="scoring", unit=" scores") as bar:
        results = score_annotator(annotator, cells, ranks, name, bar.update)
    print(f"best checkpoint {checkpoint.path}, step {checkpoint.step:,}")
    print(render_scores(results))
    if not has_test:
        print("there are no test cells (--test 0): these cells also chose the checkpoint, so its score is too good")
    written = [out / f"{SCORES}{end}" for end in (".json", ".md", ".png")]
    write_scores(results, written[0])
    written[1].write_text(render_markdown(results))
    draw_confusion(results, written[2])
    written.append(write_report(out))
    send_report(out)
    print("written: " + ", ".join(map(str, written)))
    print(f"label other cells with: gm-train predict {out} CELLS.h5ad OUT.h5ad")

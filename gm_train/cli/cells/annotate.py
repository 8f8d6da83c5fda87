"""`gm-train annotate`: fine-tune a model for a label of the cells."""

import argparse
import json
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
OUT/annotate.yaml; --set changes them), and scores the result beside linear probes of the pretrained embedding, of PCA
and of random weights. The same command again resumes it.
"""
STORE, SETTINGS, SCORES = "store.zarr", "annotate.yaml", "annotation"
#: Settings that the command needs as it has set them.
_FIXED = ("run.dir", "data.store", "task.name", "task.label")


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
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="about how often each training cell is read, at most"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        dest="settings",
        help="further settings of `gm-train fit`",
    )
    parser.add_argument("--workers", type=positive, default=1, help="processes that rank the cells (default 1)")
    parser.add_argument(
        "--max-cells",
        type=positive,
        default=5_000,
        metavar="N",
        help="training and test cells to score with, at most (%(default)s)",
    )
    add_count_options(parser)
    add_splits(parser, validation=0.2, test=0.2)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train annotate`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    from data_shards.errors import OptionError
    from data_shards.workers import interrupts
    from gm_train.checkpoint.find import open_checkpoint
    from gm_train.cli.fit import train
    from gm_train.ranks.launch_local import is_launched

    for word in arguments.settings:
        if word.partition("=")[0] in _FIXED:
            raise OptionError(f"--set {word}: `annotate` sets this itself: use --out, --label, or `gm-train fit`")
    if is_launched():
        raise OptionError(
            "annotate is one process: start it without srun or torchrun, and train on many ranks with `gm-train launch "
            f"{arguments.out / SETTINGS}`, or on this machine with --set trainer.devices=N"
        )
    path = arguments.out / SETTINGS
    if path.exists():
        # The run keeps the checkpoint that it began with, though the pretraining may have newer ones by now.
        _refuse_other_command(arguments, path)
        print(f"{path}: its store and settings are used again", flush=True)
    else:
        checkpoint = open_checkpoint(arguments.checkpoint)
        print(f"checkpoint {checkpoint.path}, step {checkpoint.step:,}", flush=True)
        with interrupts.noted():
            _make_store(arguments, checkpoint)
        _write_settings(arguments, checkpoint)
    print(f"$ gm-train fit {' '.join([str(path), *arguments.settings])}", flush=True)
    if code := train([str(path), *arguments.settings]):
        return code
    _score(arguments)
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """The part of the command that decides the store and the settings, as the first line of `annotate.yaml`."""
    kept = {
        key: str(value)
        for key, value in sorted(vars(arguments).items())
        if key not in ("command", "debug", "run", "out", "settings", "workers", "max_cells", "files", "checkpoint")
    }
    files = [str(file.resolve()) for file in arguments.files]
    return "# " + json.dumps({"checkpoint": str(arguments.checkpoint.resolve()), "files": files, **kept})


def _refuse_other_command(arguments: argparse.Namespace, path: Path) -> None:
    """Raise DataError if the settings were written by a command with other arguments."""
    from data_shards.errors import DataError

    first = path.read_text().partition("\n")[0]
    if first != _command(arguments):
        before, now = (json.loads(line.removeprefix("# ")) for line in (first, _command(arguments)))
        lines = [f"  {key}: {before.get(key)} then, {now[key]} now" for key in now if before.get(key) != now[key]]
        raise DataError(
            f"{path}: was made by another command:\n"
            + "\n".join(lines)
            + "\nchoose another --out, or repeat that command"
        )


def _make_store(arguments: argparse.Namespace, checkpoint: Any) -> None:
    """Make the store, ranked for the model."""
    from data_shards.errors import DataError
    from data_shards.prepare.make_store import make_store
    from data_shards.tokens.tokenizer import Tokenizer

    store = arguments.out / STORE
    if store.exists():  # an earlier start was killed before it wrote the settings
        raise DataError(f"{store}: exists already, and {SETTINGS} does not: delete it, or choose another --out")
    tokenizer = Tokenizer.load(checkpoint.path / "tokenizer")
    _refuse_columns(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    make_store(
        arguments.files,
        None,
        store,
        count_options(arguments),
        splits=split_options(arguments),
        min_mapped=arguments.min_mapped,
        workers=arguments.workers,
        like=tokenizer,
    )


def _refuse_columns(arguments: argparse.Namespace) -> None:
    """Raise DataError before the cells are ranked, if no file has the label, or no cells would be held out."""
    from data_shards.counts.count_file import open_counts
    from data_shards.errors import DataError
    from data_shards.prepare.splits import usual_donor_column

    columns = []
    for file in arguments.files:
        with open_counts(file, count_options(arguments)) as counts:
            columns.append(list(counts.annotations.columns))
    names = " ".join(map(str, arguments.files))
    if not any(arguments.label in of_file for of_file in columns):
        every = ", ".join(sorted({column for of_file in columns for column in of_file}))
        raise DataError(f"{names}: no column {arguments.label!r} in obs: --label can be one of {every}")
    finds_donors = arguments.donor_key is not None or any(usual_donor_column(of_file) for of_file in columns)
    if arguments.split_by == "none" or (arguments.split_by == "auto" and not finds_donors):
        raise DataError(
            f"{names}: no donors to hold out: name their column of obs with --donor-key, or divide the cells with "
            "--split-by cell, which is a weaker test"
        )


def _write_settings(arguments: argparse.Namespace, checkpoint: Any) -> None:
    import yaml

    from data_shards.files.atomic import replace_file
    from gm_train.annotation.fine_tuning import PROTOCOLS, fine_tuning_settings

    out = Path(os.path.abspath(arguments.out))
    store = out / STORE
    settings = fine_tuning_settings(
        checkpoint, store, PROTOCOLS[arguments.protocol], arguments.label, arguments.frozen, arguments.epochs
    )
    settings |= {"run.dir": str(out), "data.store": str(store)}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in sorted(settings.items()):
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    path: Path = arguments.out / SETTINGS
    replace_file(path, f"{_command(arguments)}\n{yaml.safe_dump(sections, sort_keys=False)}")


def _score(arguments: argparse.Namespace) -> None:
    from data_shards.files.atomic import replace_file
    from data_shards.workers.progress import Progress
    from gm_train.annotation.annotator_scores import Annotator, n_scores, score_annotator
    from gm_train.annotation.annotator_table import draw_confusion, render_markdown, render_scores, render_unknown
    from gm_train.annotation.class_probabilities import calibration_of, open_annotator
    from gm_train.embedding.embed import default_device
    from gm_train.evaluation.cells import read_cells
    from gm_train.run.mlflow_mirror import send_report
    from gm_train.train.run_report import write_report

    store, out = arguments.out / STORE, arguments.out
    checkpoint, model, tokenizer, config, classes = open_annotator(out)
    cells = read_cells(store, arguments.files, tokenizer, arguments.label, arguments.max_cells)
    ranks = "dithered" if tokenizer.dither else "plain"
    annotator = Annotator(checkpoint, model.to(default_device()), config, classes, calibration_of(checkpoint, classes))
    with Progress(total=n_scores(config), desc="scoring", unit=" scores") as bar:
        results = score_annotator(annotator, cells, ranks, bar.update)
    results["unknown"]["text"] = render_unknown(results)
    print(f"best checkpoint {checkpoint.path}, step {checkpoint.step:,}")
    print(render_scores(results))
    if cells.split == "validation":
        print("there are no test cells (--test 0): these cells also chose the checkpoint, so its score is too good")
    written = [out / f"{SCORES}{end}" for end in (".json", ".md", ".png")]
    draw_confusion(results, written[2])
    replace_file(written[1], render_markdown(results))
    replace_file(written[0], json.dumps(results, indent=1) + "\n")
    written.append(write_report(out))
    send_report(out)
    print("written: " + ", ".join(map(str, written)))
    print(f"label other cells with: gm-train predict {out} CELLS.h5ad OUT.h5ad")

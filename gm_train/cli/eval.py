"""`gm-train eval`: score a checkpoint on held-out cells."""

import argparse
import json
import logging
from pathlib import Path

from gm_train.cli.quick_imports import quick_imports

_EPILOG = """\
examples:
  gm-train eval runs/demo pbmc.h5ad --label bulk_labels
  gm-train eval runs/demo pbmc.h5ad --label bulk_labels --tasks probes --split validation
  gm-train eval runs/demo pbmc.h5ad --tasks pairs,robustness --gene-sets reactome.gmt
  gm-train eval runs/atlas atlas.h5ad --tasks regulation --regulation atlas.regulation.tsv
  gm-train eval runs/demo pbmc.h5ad --label bulk_labels --embedding obsm:X_scVI --embedding theirs.npy
  gm-train eval runs/atlas donors/*.h5ad --label cell_type --batch assay
  gm-train eval runs/atlas/checkpoints/step-00010000 donors/*.h5ad --label cell_type --max-cells 5000

Give the count files that the store was made from: the held-out cells are ranked again, plain and dithered.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `eval`; it sets `run`, which returns the exit code."""
    parser = subparsers.add_parser(
        "eval",
        help="score a checkpoint on held-out cells, beside controls",
        description="Score a checkpoint on held-out cells: prediction of masked and of missing genes, the order of\n"
        "masked genes, probes of cell types, batch integration, pairs of genes, regulators and their targets, and\n"
        "robustness to disturbed counts. "
        "Every score is shown beside its controls.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory for its newest one"
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="count files that the store was made from")
    parser.add_argument("--store", help="token store, a folder or a URL (default: the run's data.store)")
    parser.add_argument(
        "--split",
        choices=["validation", "test"],
        help="which held-out cells are scored (default: test cells if the files have some, else validation cells); "
        "choose settings on validation cells, and show scores of test cells",
    )
    parser.add_argument(
        "--label",
        metavar="KEY",
        help="column of obs with cell types, such as cell_type: for probes and integration (default: neither)",
    )
    parser.add_argument(
        "--batch",
        metavar="KEY",
        help="column of obs with batches, such as donor_id: for integration, which needs --label (default: none)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="run only these tasks, such as masked,probes (default: all that can be done)",
    )
    parser.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="obsm:KEY|FILE.npy",
        help="vectors that were made elsewhere, for probes and integration; may be given several times",
    )
    parser.add_argument(
        "--paper-reconstruction",
        action="store_true",
        help="also score the published reconstruction, in which the model repeats what it sees, beside copy machines",
    )
    parser.add_argument(
        "--gene-sets",
        type=Path,
        metavar="FILE.gmt",
        help="gene sets that the model was not trained with, for the task pairs",
    )
    parser.add_argument(
        "--regulation",
        type=Path,
        metavar="FILE.tsv",
        help="table of regulators and their targets (columns regulator and target), for the task regulation",
    )
    parser.add_argument(
        "--max-cells", type=int, default=2_000, metavar="N", help="maximal number of cells to read (%(default)s)"
    )
    parser.add_argument(
        "--mask-seeds",
        type=int,
        default=3,
        metavar="N",
        help="how often genes are hidden anew (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for eval.json, eval.md and pictures (default: RUN/eval)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run `gm-train eval`; return the exit code."""
    # Imported late: importing torch takes seconds, and `--help` should be fast.
    with quick_imports():
        import torch

        from data_shards.errors import DataError, OptionError
        from data_shards.files.atomic import hash_path
        from data_shards.files.location import location_of
        from data_shards.store.manifest import Manifest
        from gm_train.checkpoint.find import load_model, open_checkpoint
        from gm_train.evaluation.cells import read_cells
        from gm_train.evaluation.evaluate import evaluate
        from gm_train.evaluation.other_embeddings import read_embeddings
        from gm_train.evaluation.pairs.known_sets import refuse_unknown_sets
        from gm_train.evaluation.score_table import render_text
        from gm_train.evaluation.tasks import choose_tasks
        from gm_train.ranks.launch_local import follow_parent
        from gm_train.run.mlflow_mirror import send_report
        from gm_train.train.run_report import EVAL_DIR, write_report

    follow_parent()  # a child of `gm-train ablate` ends with it
    for name in ("max_cells", "mask_seeds"):
        if getattr(arguments, name) < 1:
            raise OptionError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")
    tasks = choose_tasks(arguments.tasks, arguments.paper_reconstruction)
    if arguments.embedding and not any(task.takes_embeddings for task in tasks):
        takers = ", ".join(task.key for task in choose_tasks(()) if task.takes_embeddings)
        raise OptionError(f"--embedding: none of the tasks scores vectors that were made elsewhere: add {takers}")
    if arguments.gene_sets is not None and "pairs" not in {task.key for task in tasks}:
        raise OptionError("--gene-sets: only the task pairs takes gene sets: add pairs to --tasks")
    if arguments.regulation is not None and "regulation" not in {task.key for task in tasks}:
        raise OptionError("--regulation: only the task regulation takes a table: add regulation to --tasks")
    if arguments.embedding and arguments.label is None:
        raise OptionError("--embedding: vectors are scored by probes, which need --label")
    if arguments.batch is not None and arguments.label is None:
        raise OptionError("--batch: batches are compared among cells of one type, which needs --label")
    checkpoint = open_checkpoint(arguments.checkpoint)
    given = arguments.checkpoint.resolve()
    run_dir = given if (given / "checkpoints").is_dir() else given.parent.parent
    if arguments.out is None and not (run_dir / "metrics.jsonl").is_file():
        raise DataError(f"{given}: not in a run directory: choose a folder for the results with --out")
    print(f"checkpoint {checkpoint.path}, step {checkpoint.step:,}")
    model, tokenizer, config = load_model(checkpoint)
    store = location_of(arguments.store or config.data.store)
    try:
        manifest = Manifest.load(store)
    except DataError as error:
        if arguments.store is not None:
            raise
        raise DataError(f"{error}. If the store of this model has moved, name it with --store") from error
    other_store = False
    identity = json.loads((checkpoint.path / "identity.json").read_text())
    trained_store = identity["store"]
    if (earlier := manifest.before_adding(trained_store)) is not None:
        new = ", ".join(entry.name for entry in manifest.datasets[len(earlier.datasets) :])
        print(f"{store} has grown since this checkpoint: the model has seen no cell of {new}")
    elif manifest.hash != trained_store:
        message = f"{store}: not the store that this model was trained on, so it may have seen the cells held out there"
        if arguments.store is None:
            raise DataError(f"{message}; name the right one with --store, or this one to use it all the same")
        logging.getLogger(__name__).warning(message)
        other_store = True
    if "pairs" in {task.key for task in tasks} and config.objective.gamma != 0:
        sets = Path(config.objective.pathways)
        if sets.is_file() and hash_path(sets) != identity["pathways"]:
            others = ",".join(task.key for task in choose_tasks(()) if task.key != "pairs")
            raise DataError(
                f"{sets}: not the gene sets that this model was trained with (the hash differs): put that file back, "
                f"or leave pairs out with --tasks {others}"
            )
    if arguments.gene_sets is not None:
        refuse_unknown_sets(arguments.gene_sets, config.objective, identity)
    cells = read_cells(
        store, arguments.files, tokenizer, arguments.label, arguments.max_cells, arguments.split, arguments.batch
    )
    embeddings = read_embeddings(arguments.embedding, cells)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained_on = "dithered" if tokenizer.dither else "plain"
    print(f"{cells.held_out.sum():,} {cells.split} and {(~cells.held_out).sum():,} training cells", flush=True)
    print("scoring the model and its controls on plain and dithered ranks", flush=True)
    scored = {"step": checkpoint.step, "path": str(checkpoint.path.resolve()), "hash": checkpoint.hash}
    evaluation = evaluate(
        model.to(device),
        config,
        cells,
        trained_on,
        arguments.mask_seeds,
        scored,
        embeddings,
        tasks,
        arguments.gene_sets,
        other_store,
        identity["pathways"],
        arguments.regulation,
    )
    print(render_text(evaluation.results))
    print("drawing", flush=True)
    written = evaluation.write(arguments.out or run_dir / EVAL_DIR)
    if arguments.out is None:
        written.append(write_report(run_dir))
        send_report(run_dir)
    print("written: " + ", ".join(map(str, written)))
    return 0

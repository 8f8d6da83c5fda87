"""Run `make demo`: from counts to an evaluated model, through the commands that a user would type."""

import argparse
import json
import shlex
import shutil
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.prepare.splits import usual_donor_column
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import list_checkpoints
from gm_train.cli.pbmc_file import pbmc_file
from gm_train.cli.stories.commands import run_command
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config
from gm_train.config.schema import Config
from gm_train.objective.pathway import read_gmt
from gm_train.run.records import identity_of

CONFIG = "configs/demo.yaml"
#: The quicker tasks of an evaluation that say what is known about cells.
TASKS = "missing,probes"
#: Cells that choose settings, and cells that are shown: more of these, since a table of few cells says little. Width
#: and normalisation are those of an earlier demo, which was tuned on other validation cells. 35 of the test cells were
#: among those; with seed 0, more would be.
SPLITS = ("--validation", "0.15", "--test", "0.2", "--split-seed", "1")
LABELS = ("cell_type", "celltype", "Celltype", "CellType", "bulk_labels", "louvain", "leiden")


def _budget(directory: Path, steps: int) -> int:
    """Return the next multiple of the demo's steps: finish an interrupted demo, continue a finished one."""
    checkpoints = list_checkpoints(directory / "checkpoints")
    done = checkpoints[-1].step if checkpoints else 0
    return (done // steps + 1) * steps


def _other_settings(run: Path, config: Config) -> str:
    """Name the settings that the demo's earlier run was trained with and that differ now; empty if none does."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        return ""
    saved = json.loads((checkpoints[-1].path / "identity.json").read_text())
    now = identity_of(config, "", "", "")
    return ", ".join(
        f"{key}={saved[key]}"
        for key in now
        if key.startswith(("model.", "objective.", "optim.")) and key != "optim.schedule_steps"
        if key in saved and saved[key] != now[key]
    )


def _label_column(store: Path) -> str | None:
    """Return the column of obs with cell types, if it has one of the usual names; else None."""
    name = Manifest.load(store).datasets[0].name
    columns = pq.read_schema(store / name / "obs.parquet").names
    return next((column for column in LABELS if column in columns), None)


def _split_by(file: CountFile) -> str:
    """Split by donor if a usual column of obs names enough, one for each split; else by cell, as the blood cells."""
    key = usual_donor_column(file.annotations.columns)
    return "donor" if key is not None and file.read_obs(columns=[key])[key].nunique() > 2 else "cell"


def _make_store(cells: Path, reading: list[str], store: Path, top_k: int, split_by: str) -> None:
    store.parent.mkdir(parents=True, exist_ok=True)
    medians = store.parent / "medians.zarr"
    # A demo that was interrupted between the two commands may have left it, perhaps made from other cells.
    shutil.rmtree(medians, ignore_errors=True)
    run_command("data", "medians", cells, *reading, "--out", medians)
    run_command(
        "data", "shards", cells, *reading, "--medians", medians, "--out", store,
        "--top-k", str(top_k), "--split-by", split_by, *SPLITS,
    )  # fmt: skip


def _sets_fit(config: Config, store: Path) -> bool:
    """Return whether the demo's gene sets contain genes of the store."""
    known = Tokenizer.load(store).vocabulary.token_of
    return any(len(set(genes) & set(known)) > 1 for genes in read_gmt(Path(config.objective.pathways)).values())


def demo(data: Path | None, fresh: bool) -> None:
    """Make medians and a store from counts, train a model and evaluate it. A second call trains it further.

    Args:
        data: an .h5ad file with counts; None uses the blood cells of scanpy.
        fresh: whether to delete the store and the run of an earlier demo.

    Raises:
        DataError: the cells cannot be read, the store of an earlier demo was made from other cells or has no test
            cells, or its run has other settings.
    """
    started = time.monotonic()
    config = load_config(CONFIG)
    store, run = Path(config.data.store), Path(config.run.dir)
    cells = data or pbmc_file()
    # The blood cells have log-normalised values, from which counts are recovered. A user's file must have counts.
    options = CountOptions() if data else CountOptions(raw=True, counts_from="log1p")
    with open_counts(cells, options) as file:
        print(f"cells: {file.path}, {file.n_cells:,} cells of {file.n_genes:,} genes")
        split_by = _split_by(file)
    if fresh:
        for folder in (store, run):
            shutil.rmtree(folder, ignore_errors=True)
    again = f"make demo FRESH=1 DATA={shlex.quote(str(data))}" if data else "make demo FRESH=1"
    if store.exists():
        entry = Manifest.load(store).datasets[0]
        if entry.source_hash != hash_path(cells):
            raise DataError(f"{store} was made from other cells than {cells}: `{again}` starts over with these")
        if not entry.n_test:
            raise DataError(f"{store} has no test cells, as the demo of an earlier version: `{again}` starts over")
        print(f"the store {store} exists already")
    else:
        _make_store(cells, [] if data else ["--raw", "--counts-from", "log1p"], store, config.data.row_length, split_by)
    if other := _other_settings(run, config):
        raise DataError(f"{run} was trained with other settings than {CONFIG} ({other}): `{again}` starts over")
    words = [CONFIG, f"trainer.max_steps={_budget(run, config.trainer.max_steps)}"]
    if data and not _sets_fit(config, store):
        print(f"\n{config.objective.pathways} has symbols, but none of the store's genes: training without L_pathway")
        words.append("objective.pathways=")
    run_command("fit", *words)
    label = _label_column(store)
    labelled = ["--label", label] if label else []
    run_command("eval", run, cells, *labelled, "--tasks", TASKS)
    print(f"\nThis took {time.monotonic() - started:.0f} s. Its files:")
    for path, what in (
        (store, "the cells as ranked tokens; see them with gm-train data inspect"),
        (run / "checkpoints", "committed checkpoints: weights, optimizer, position, tokenizer"),
        (run / "metrics.jsonl", "records of every step"),
        (run / "report.html", "curves, the table above and the embedding: open it in a browser"),
        (run.parent / "mlflow.db", f"mlflow ui --backend-store-uri sqlite:///{run.parent / 'mlflow.db'}"),
    ):
        print(f"  {path!s:32} {what}")
    print("`. .venv/bin/activate` puts gm-train and mlflow on the path of this shell.")
    every_task = shlex.join(["gm-train", "eval", str(run), str(cells), *labelled])
    print(f"`{every_task}` runs all tasks of an evaluation;")
    print(f"`make demo` again trains {config.trainer.max_steps:,} more steps, at the final learning rate;")
    print(f"`gm-train fit {CONFIG} run.dir=runs/mine run.seed=1` trains another model.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--data", type=Path, help=".h5ad file with counts (default: blood cells from scanpy)")
    parser.add_argument("--fresh", action="store_true", help="delete the earlier demo and start over")
    arguments = parser.parse_args()
    try:
        demo(arguments.data, arguments.fresh)
    except (DataError, ConfigError) as error:
        sys.exit(f"demo: error: {error}")

"""Run `make story`: what a model learns from a simulated atlas, through the commands that a user would type."""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from data_shards.errors import DataError
from gm_train.cli.stories.commands import run_command
from gm_train.config.check import ConfigError
from gm_train.config.load import load_config

CONFIG = "configs/story.yaml"
#: Types are combinations of programmes, as in configs/ablations, and unequally frequent: the commonest 30 times as
#: frequent as the rarest.
ATLAS = {
    "genes": 1000, "cell-types": 30, "programmes": 16, "programmes-per-type": 3, "genes-per-programme": 30,
    "donors": 40, "batches": 5, "counts-per-cell": 500, "dropout": 0.3, "type-skew": 1,
}  # fmt: skip
#: The same donors are held out from the pretraining and from the annotation.
SPLITS = ("--split-by", "donor", "--validation", "0.1", "--test", "0.2", "--split-seed", "0")
TOP_K = 128
TASKS = "missing,probes,robustness"


def story(cells: int, fresh: bool) -> None:
    """Simulate an atlas, pretrain on it, evaluate the model and annotate donors that it has not seen.

    A second call continues where the first one stopped.

    Args:
        cells: number of cells of the atlas.
        fresh: whether to delete what an earlier call has made.

    Raises:
        DataError: an earlier call has made an atlas of another size.
    """
    started = time.monotonic()
    config = load_config(CONFIG)
    store, run = Path(config.data.store), Path(config.run.dir)
    folder, types = store.parent, run.with_name(f"{run.name}-types")
    atlas, medians, options = folder / "atlas.h5ad", folder / "medians.zarr", folder / "atlas.json"
    if fresh:
        for one in (folder, run, types):
            shutil.rmtree(one, ignore_errors=True)
    wanted = {"cells": cells, **ATLAS}
    if options.exists() and json.loads(options.read_text()) != wanted:
        raise DataError(f"{folder} has an atlas with other options: `make story FRESH=1` starts over")
    folder.mkdir(parents=True, exist_ok=True)
    options.write_text(json.dumps(wanted))
    if not atlas.exists():
        words = [word for key, value in wanted.items() for word in (f"--{key}", str(value))]
        run_command("data", "simulate", "--out", atlas, *words)
    if not medians.exists():
        run_command("data", "medians", atlas, "--out", medians)
    if not store.exists():
        run_command("data", "shards", atlas, "--medians", medians, "--out", store, "--top-k", str(TOP_K), *SPLITS)
    run_command("fit", CONFIG)
    run_command("eval", run, atlas, "--label", "cell_type", "--tasks", TASKS)
    run_command("annotate", run, atlas, "--label", "cell_type", "--out", types, "--frozen", "--epochs", "2", *SPLITS)
    print(f"\nThis took {(time.monotonic() - started) / 60:.0f} minutes. Look at these in a browser:")
    print(f"  {run / 'report.html'!s:32} what was learned, beside controls, step by step; the embedding")
    print(f"  {types / 'report.html'!s:32} the annotation of donors that no step has seen")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make story", description=__doc__)
    parser.add_argument("--cells", type=int, default=50_000, help="cells of the simulated atlas (default 50000)")
    parser.add_argument("--fresh", action="store_true", help="delete the earlier story and start over")
    arguments = parser.parse_args()
    try:
        story(arguments.cells, arguments.fresh)
    except (DataError, ConfigError) as error:
        sys.exit(f"story: error: {error}")

"""The transformer baseline on the demo's cells, trained on masked genes."""

import json
from pathlib import Path

import pytest

from gm_train.cli.main import main
from gm_train.cli.pbmc_file import pbmc_file

pytestmark = pytest.mark.slow


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def test_it_beats_corpus_frequency_on_held_out_blood_cells(tmp_path: Path) -> None:
    """By 0.4 nats within 250 steps; the frequency control leaves out a cell's visible genes."""
    cells, reading = pbmc_file(), ["--raw", "--counts-from", "log1p"]
    medians, store = tmp_path / "medians.zarr", tmp_path / "store.zarr"
    run("data", "medians", cells, *reading, "--out", medians)
    run(
        "data", "shards", cells, *reading, "--medians", medians, "--out", store, "--top-k", "512",
        "--split-by", "cell", "--validation", "0.2",
    )  # fmt: skip
    run(
        "fit", "configs/demo.yaml", f"data.store={store}", f"run.dir={tmp_path / 'run'}", "model.arch=transformer",
        "model.n_layers=4", "model.n_heads=2", "model.d_ff=280", "objective.language=masked", "objective.mask_rate=0.4",
        "optim.lr=4e-3", "trainer.max_steps=250", "tracking.mlflow=none",
    )  # fmt: skip
    run("eval", tmp_path / "run", cells, "--mask-seeds", "2", "--tasks", "masked")
    results = json.loads((tmp_path / "run" / "eval" / "eval.json").read_text())["masked"]
    plain = {row["scored"]: row["cross_entropy"]["mean"] for row in results if row["ranks"] == "plain"}
    assert plain["model"] < plain["frequency"] - 0.4

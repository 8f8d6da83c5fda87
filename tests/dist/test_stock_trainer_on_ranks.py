"""A Lightning Trainer of one's own on two ranks: the losses of `gm-train fit`, and every cell predicted once.

Also after a restart from Lightning's checkpoint.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gm_train.checkpoint.find import open_checkpoint
from gm_train.config.load import load_config
from gm_train.embedding.embed import embed
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_gene_sets
from tests.support.training_runs import train_ranks


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_losses_are_those_of_fit(atlas: Atlas, tmp_path: Path, strategy: str) -> None:
    words = [
        *tiny_words(atlas.store, tmp_path / "run"), f"objective.pathways={write_gene_sets(tmp_path / 'sets.gmt')}",
        "objective.pathway_size=[5,200]", "data.micro_rows=1",
    ]  # fmt: skip
    fit(load_config(*words))
    rows = read_rows(tmp_path / "run" / METRICS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.stock_run", tmp_path / "out.json", strategy, *words],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        trained = [row for row in rows if "loss" in row]
        assert len(rank["steps"]) == len(trained) == 12
        for ours, theirs in zip(rank["steps"], trained, strict=True):
            for key, value in ours.items():
                assert value == pytest.approx(theirs[key], abs=1e-6 if key != "grad_norm" else 1e-5), key
        validated = [row for row in rows if "val_loss" in row]
        assert [row["step"] for row in rank["validations"]] == [row["step"] for row in validated]
        for ours, theirs in zip(rank["validations"], validated, strict=True):
            for key, value in ours.items():
                assert value == pytest.approx(theirs[key], abs=1e-6), key
    cells = sorted((name, row, vector) for rank in ranks for name, row, *vector in rank["cells"])
    assert [cell[:2] for cell in cells] == [
        (name, row) for name, n in (("first", 150), ("second", 41)) for row in range(n)
    ]
    # The weights are those that `fit` has at its end.
    expected = np.concatenate([embed(tmp_path / "run", file)[:, :3] for file in atlas.files])
    assert np.abs(np.array([vector for *_, vector in cells]) - expected).max() < 1e-4


def test_a_callback_of_one_rank_stops_all(atlas: Atlas, tmp_path: Path) -> None:
    callback = "{tests.support.callbacks:StopOnRank: {rank: 1, step: 6}}"
    words = [*tiny_words(atlas.store, tmp_path / "run"), "data.micro_rows=1", f"trainer.callbacks=[{callback}]"]
    assert train_ranks(words, 2, tmp_path / "log") == [0, 0]
    assert "stopped by a callback at step 6 of 12" in (tmp_path / "log").read_text()
    assert open_checkpoint(tmp_path / "run").step == 6


def test_a_callback_that_fails_on_one_rank_ends_all(atlas: Atlas, tmp_path: Path) -> None:
    callback = "{tests.support.callbacks:FailOnRank: {rank: 1, step: 6}}"
    words = [*tiny_words(atlas.store, tmp_path / "run"), "data.micro_rows=1", f"trainer.callbacks=[{callback}]"]
    assert train_ranks(words, 2, tmp_path / "log") == [1, 1]
    log = (tmp_path / "log").read_text()
    assert log.count("FailOnRank: its on_train_batch_end raised RuntimeError: no more") == 1
    assert "lost the connection to another rank" in log
    assert open_checkpoint(tmp_path / "run").step == 4

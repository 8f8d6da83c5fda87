"""A Lightning Trainer of one's own on two ranks: the losses of `gm-train fit`, and every cell predicted once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gm_train.config.load import load_config
from gm_train.run.records import METRICS, read_rows
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words, write_gene_sets


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
    cells = [(name, row) for rank in ranks for name, row, *_ in rank["cells"]]
    assert sorted(cells) == [(name, row) for name, n in (("first", 150), ("second", 41)) for row in range(n)]

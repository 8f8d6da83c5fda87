"""`gm-train embed` as a command: its help, its report, its exit codes."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


def test_the_help_has_examples_and_says_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["embed", "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for words in ("gm-train embed runs/demo cells.h5ad", 'obsm["X_genemamba"]', "--pool", "--gene-column", "--genes"):
        assert words in printed


def test_the_command_reports_and_refuses(atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(load_config(*tiny_words(atlas.store, tmp_path / "run"), "trainer.max_steps=4", "optim.warmup_steps=2"))
    cells = ad.read_h5ad(atlas.files[1])
    cells.X[7] = 0
    cells.write_h5ad(tmp_path / "in.h5ad")
    words = ["embed", str(tmp_path / "run"), str(tmp_path / "in.h5ad"), str(tmp_path / "out.zarr")]
    capsys.readouterr()
    assert main([*words, "--pool", "rank"]) == 0
    printed = capsys.readouterr().out
    assert "41 cells; 80 genes, ids as they are in the index of var" in printed
    assert "1 cells have no gene of the model: their vectors are NaN" in printed
    assert "cells/s" in printed
    assert "% of the time in the model" in printed
    vectors = ad.read_zarr(tmp_path / "out.zarr").obsm["X_genemamba"]
    assert np.flatnonzero(np.isnan(vectors).any(1)).tolist() == [7]
    assert main(words) == 1
    assert "out.zarr: exists already: remove it or choose another name" in capsys.readouterr().err
    words[3] = str(tmp_path / "out.txt")
    assert main(words) == 2
    assert "end in .h5ad or .zarr" in capsys.readouterr().err

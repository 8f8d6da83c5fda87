"""Each block of docs/python.md runs, in its order; and what `import gm_train` shows."""

import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from omegaconf import OmegaConf

import gm_train
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.run.records import METRICS, read_rows
from tests.conftest import Atlas, tiny_words

PAGE = Path(__file__).parents[3] / "docs" / "python.md"


def test_the_page_runs(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny store and model stand where the page has those of the demo."""
    monkeypatch.chdir(tmp_path)
    config = load_config(*tiny_words(atlas.store, Path("runs/demo")), "optim.schedule_steps=null")
    (tmp_path / "configs").mkdir()
    OmegaConf.save(OmegaConf.structured(config), "configs/demo.yaml")
    assert main(["fit", "configs/demo.yaml", "trainer.max_steps=8"]) == 0
    shutil.copy(atlas.files[1], "cells.h5ad")

    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (first,) = re.findall(r"^    (from .*)$", text, re.MULTILINE)
    assert len(blocks) == 3
    (readme,) = re.findall(r"```python\n(.*?)```", (PAGE.parents[1] / "README.md").read_text(), re.DOTALL)
    for there, here in (("max_steps=500", "max_steps=10"), ("runs/atlas", "runs/demo"), ("atlas.h5ad", "cells.h5ad")):
        assert there in readme
        readme = readme.replace(there, here)
    blocks.append(readme)
    names: dict[str, Any] = {}
    for block in (first, *blocks):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["longer"].global_step == 60
    vectors = names["cells"].obsm["X_genemamba"]
    assert vectors.shape == (41, 32)
    assert np.array_equal(vectors, gm_train.embed("runs/demo", "cells.h5ad"))
    assert ad.read_h5ad("cells.h5ad").n_obs == 41

    (yaml,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    Path("more.yaml").write_text(yaml)
    assert main(["fit", "configs/demo.yaml", "more.yaml", "run.dir=runs/more"]) == 0
    assert len([row for row in read_rows(Path("runs/more") / METRICS) if "loss" in row]) == 12
    assert list(Path("runs/more/tensorboard").glob("events.*"))
    assert list(Path("runs/more/csv").glob("*/metrics.csv"))


def test_what_import_gm_train_shows() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", gm_train.__version__)
    assert {"CellDataModule", "GeneMambaModule", "embed", "load_config", "load_model"} <= set(dir(gm_train))
    shown = pydoc.plain(pydoc.render_doc(gm_train))
    for name in gm_train.__all__:
        assert name in shown
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gm_train.nothing
    # `gm-train --help` must not wait for torch.
    code = "import sys, gm_train; gm_train.__version__; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"

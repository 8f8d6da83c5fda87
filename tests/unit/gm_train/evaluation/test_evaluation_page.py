"""The Python of docs/evaluation.md runs as it stands, with a stand-in for scVI, which is not installed here."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import anndata as ad
import numpy as np
import pytest

from data_shards.files.location import location_of
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TRAIN
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import tiny_words, write_cells

PAGE = Path(__file__).parents[4] / "docs" / "evaluation.md"


class Scvi:
    """Has the four methods of scvi-tools 1.4 that the page calls; its vectors are log counts of three genes."""

    trained_on: ad.AnnData

    def __init__(self, cells: ad.AnnData) -> None:
        Scvi.trained_on = cells

    @staticmethod
    def setup_anndata(cells: ad.AnnData) -> None:
        assert not cells.is_view  # scVI writes into it

    def train(self) -> None:
        pass

    def get_latent_representation(self, cells: ad.AnnData) -> np.ndarray:
        return np.log1p(cells.X[:, :3].toarray())


def test_vectors_of_another_method_are_learned_from_training_cells_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_cells(Path("atlas.h5ad"), 120, 60, seed=3)
    make_medians([path], Path("medians.zarr"), say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.3)
    make_store([path], Path("medians.zarr"), Path("atlas.zarr"), top_k=48, splits=splits, say=lambda line: None)
    fit(load_config(*tiny_words(Path("atlas.zarr"), Path("runs/atlas")), "trainer.max_steps=3"))
    module = ModuleType("scvi")
    module.model = SimpleNamespace(SCVI=Scvi)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scvi", module)
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "scvi" in block)
    exec(compile(code, str(PAGE), "exec"), {})
    split = open_array(location_of("atlas.zarr"), "atlas", "split").read(0, 120)
    assert Scvi.trained_on.obs_names.tolist() == [f"cell {row}" for row in np.flatnonzero(split == TRAIN)]
    words = ["--label", "cell_type", "--tasks", "probes", "--embedding", "scvi.npy"]
    assert main(["eval", "runs/atlas", "atlas.h5ad", *words]) == 0
    assert "| scvi |" in Path("runs/atlas/eval/eval.md").read_text()

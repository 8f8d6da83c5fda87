"""A pretrained run, and one that learned the cell type of the same cells."""

from pathlib import Path

import pytest

from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


@pytest.fixture(scope="session")
def pretrained(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps over the genes of `atlas`."""
    run = tmp_path_factory.mktemp("pretrained") / "run"
    fit(load_config(*tiny_words(atlas.store, run)))
    return run


@pytest.fixture(scope="session")
def annotator(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned `cell_type`; its last checkpoint was not validated."""
    run = tmp_path_factory.mktemp("annotator") / "run"
    more = ["task.name=classify", "task.label=cell_type", "data.rows_per_lane=2", "optim.lr=2e-3", "trainer.patience=9"]
    steps = ["trainer.max_steps=16", "optim.schedule_steps=16", "trainer.validation_cells=40", "task.max_error=0.4"]
    fit(load_config(*tiny_words(atlas.store, run), *more, *steps))
    return run

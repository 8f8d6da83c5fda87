"""A run of a few steps that several files of tests evaluate."""

from pathlib import Path

import pytest

from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import Atlas, tiny_words


@pytest.fixture(scope="module")
def trained(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    fit(load_config(*tiny_words(atlas.store, run_dir)))
    return run_dir

"""How `make demo` divides cells, and what it does not go on with; the whole runs in `tests/e2e/test_demo.py`."""

import shutil
from pathlib import Path

import anndata as ad
import pytest

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.store.manifest import Manifest
from gm_train.cli.stories.demo import _make_store, _split_by, demo
from gm_train.config.load import load_config
from gm_train.evaluation.chosen_cells import usual_split
from gm_train.train.fit import fit
from tests.conftest import tiny_words, write_cells


def cells_of_donors(path: Path, n_donors: int) -> Path:
    """Write cells of so many donors; 0 leaves the column out."""
    cells = ad.read_h5ad(write_cells(path, 90, 40, seed=3))
    if n_donors:
        cells.obs["donor_id"] = [f"donor {i % n_donors}" for i in range(cells.n_obs)]
    else:
        del cells.obs["donor_id"]
    cells.write_h5ad(path)
    return path


@pytest.mark.parametrize(("n_donors", "way"), [(0, "cell"), (1, "cell"), (2, "cell"), (3, "donor"), (6, "donor")])
def test_every_split_of_the_demo_has_cells_however_few_donors_there_are(
    n_donors: int, way: str, tmp_path: Path
) -> None:
    path, store = cells_of_donors(tmp_path / "mine.h5ad", n_donors), tmp_path / "runs" / "store.zarr"
    with open_counts(path, CountOptions()) as file:
        assert _split_by(file) == way
    _make_store(path, [], store, 32, way)
    (entry,) = Manifest.load(store).datasets
    assert min(entry.n_train, entry.n_validation, entry.n_test) > 0
    assert usual_split([entry]) == "test"


@pytest.fixture
def demo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with the demo's settings."""
    shutil.copytree("configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_store_of_an_earlier_version_has_no_test_cells_and_is_refused(demo_folder: Path) -> None:
    path, store = cells_of_donors(demo_folder / "mine.h5ad", 0), Path("runs/demo-data/store.zarr")
    _make_store(path, [], store, 32, "cell")
    medians = store.with_name("medians.zarr")
    shutil.rmtree(store)
    make_store([path], medians, store, splits=SplitOptions(by="cell", validation=0.2), say=lambda line: None)
    with pytest.raises(DataError) as refused:
        demo(path, fresh=False)
    assert f"{store} has no test cells" in str(refused.value)
    assert f"`make demo FRESH=1 DATA={path}` starts over" in str(refused.value)


def test_a_run_of_another_objective_is_refused(demo_folder: Path) -> None:
    path, store = cells_of_donors(demo_folder / "mine.h5ad", 0), Path("runs/demo-data/store.zarr")
    _make_store(path, [], store, 32, "cell")
    words = tiny_words(store, Path("runs/demo"))
    fit(load_config(*words, "objective.language=masked", "trainer.max_steps=2"))
    with pytest.raises(DataError) as refused:
        demo(path, fresh=False)
    assert "runs/demo was trained with other settings than configs/demo.yaml (" in str(refused.value)
    assert "objective.language=masked" in str(refused.value)
    assert f"`make demo FRESH=1 DATA={path}` starts over" in str(refused.value)

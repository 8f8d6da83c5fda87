"""How `make demo` divides cells; the whole of it runs in `tests/e2e/test_demo.py`."""

from pathlib import Path

import anndata as ad
import pytest

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.store.manifest import Manifest
from gm_train.cli.demo import _make_store, _split_by
from gm_train.evaluation.chosen_cells import usual_split
from tests.conftest import write_cells


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

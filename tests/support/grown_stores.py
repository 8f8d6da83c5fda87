"""A store that grows by `--add` while a run is trained on it."""

import shutil
from pathlib import Path

from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from tests.conftest import Atlas, write_cells


def copied(atlas: Atlas, folder: Path) -> Path:
    """A copy of the atlas's store in a folder, which may grow."""
    return Path(shutil.copytree(atlas.store, folder / "growing.zarr"))


def grow(store: Path, name: str = "third", n_cells: int = 90, seed: int = 3) -> Path:
    """Add a data set of new cells to a store; return their count file."""
    file = write_cells(store.parent / f"{name}.h5ad", n_cells, 80, seed)
    make_store([file], None, store, splits=SplitOptions(by="cell", validation=0.2), add=True, say=lambda line: None)
    return file

"""Small stores, made from counts, for tests."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.store import writer
from data_shards.store.manifest import Manifest
from tests.support.count_files import draw_counts, write_counts

#: A layout in which even small data sets have several shards.
SMALL = {
    name: (dtype, chunk, shard)
    for (name, (dtype, _, _)), chunk, shard in zip(
        writer.LAYOUT.items(), (64, 8, 64, 8, 8), (256, 32, 256, 16, 16), strict=True
    )
}


def quiet(line: str) -> None:
    """Drop a line of the report."""


def build(folder: Path, files: list[Path], name: str = "s.zarr", **options: object) -> Manifest:
    """Make a store, and the medians `m.zarr` beside it if they do not exist yet.

    Args:
        folder: where the store and the medians are.
        files: AnnData files.
        name: of the store.
        options: further arguments of `make_store`.
    """
    if not (folder / "m.zarr").exists():
        make_medians(files, folder / "m.zarr", say=quiet)
    return make_store(files, folder / "m.zarr", folder / name, **{"say": quiet, **options})  # type: ignore[arg-type]


def read(path: Path, array: str) -> np.ndarray:
    """Read an array of a store."""
    return np.asarray(zarr.open_group(path, mode="r")[array][:])  # type: ignore[index]


def two_data_sets(folder: Path) -> list[Path]:
    """Write two data sets that share a donor."""
    one = {"donor_id": [f"d{i % 7}" for i in range(60)], "cell_type": pd.Categorical(["b", "a"] * 30)}
    two = {"donor": ["d0", "e1", "e2", "e3"] * 5, "tissue": ["gut"] * 20}
    return [
        write_counts(folder / "one.h5ad", draw_counts(60, 20, 1), obs=one),
        write_counts(folder / "two.h5ad", draw_counts(20, 20, 2), obs=two),
    ]


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of every file in a directory, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

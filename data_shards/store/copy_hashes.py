"""Copy the hashes of a store's cells, and their splits, without their tokens: 9 bytes a cell."""

from pathlib import Path

import zarr

from data_shards.errors import DataError
from data_shards.files.atomic import flush, whole_directory
from data_shards.files.location import Location
from data_shards.store.arrays import open_array
from data_shards.store.manifest import Manifest
from data_shards.store.writer import ArrayWriter


def copy_hashes(store: Location, manifest: Manifest, out: Path) -> None:
    """Copy the manifest, and `cell_hash` and `split` of each data set that has hashes, a few million cells at a time.

    The copy appears when it is complete, and replaces an earlier one.

    Args:
        store: the store.
        manifest: its manifest.
        out: the copy, a folder.

    Raises:
        DataError: the store cannot be read or is damaged, or the copy cannot be written.
    """
    with whole_directory(out, replace=True) as folder:
        for entry in manifest.datasets:
            if entry.cell_hash is None:
                continue
            zarr.create_group(folder / entry.name)
            for name in ("cell_hash", "split"):
                array, writer = open_array(store, entry.name, name), ArrayWriter(folder / entry.name, name)
                for start in range(0, array.size, array.shard):
                    writer.append(array.read(start, min(start + array.shard, array.size)))
                digest = writer.close()
                if name == "cell_hash" and digest != entry.cell_hash:
                    raise DataError(f"{array.path}: is not what was written: its SHA-256 differs")
        manifest.save(folder)
        for path in folder.rglob("*"):
            flush(path)

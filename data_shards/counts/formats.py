"""Open files of counts, each format by its ending.

An opener returns what an AnnData file has: a mapping with `X` (or `layers`, `raw`), `obs` and `var`, stored as anndata
stores them. To read another format, write an opener and list it here.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import zarr

from data_shards.errors import DataError
from data_shards.files.kinds import COUNTS, kind_of


def open_anndata(path: Path) -> Any:
    """Open an `.h5ad` file with h5py, or an AnnData-Zarr folder with Zarr.

    Raises:
        DataError: it is neither, or is truncated.
    """
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  the import registers its filters with HDF5
    try:
        if path.is_dir():
            return zarr.open_group(path, mode="r")
        return h5py.File(path, "r")
    except Exception as error:
        if path.is_dir() and not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
            raise DataError(
                f"{path}: is {kind_of(path) or 'a folder'}, but not an AnnData-Zarr: give .h5ad files or AnnData-Zarr "
                "folders"
            ) from error
        if (kind := kind_of(path)) not in (None, COUNTS, "a file"):
            raise DataError(f"{path}: is {kind}, not {COUNTS}: give .h5ad files or AnnData-Zarr folders") from error
        # h5py raises OSError for both a foreign and a truncated file; its text tells which one.
        raise DataError(
            f"{path}: not an AnnData file, or a truncated one ({error}): fetch or export it again"
        ) from error


#: Endings and their openers. Files with any other ending are opened as AnnData.
FORMATS: dict[str, Callable[[Path], Any]] = {".h5ad": open_anndata, ".zarr": open_anndata}


def open_root(path: Path) -> Any:
    """Open a file, or a folder, of counts.

    Raises:
        DataError: it does not exist, or is not of the format that its ending names.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    opener = next((opener for ending, opener in FORMATS.items() if path.name.endswith(ending)), open_anndata)
    return opener(path)

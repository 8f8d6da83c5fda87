"""Copy an AnnData file in pieces and add to the copy, which is whole or absent.

In the same format the bytes are copied, so everything stays exactly as it was. Between `.h5ad` and Zarr the tree of
groups and arrays is translated.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zarr
from anndata import settings
from anndata.io import write_elem

from data_shards.counts.formats import open_root
from data_shards.errors import DataError, OptionError
from data_shards.files.atomic import refuse_existing, whole_directory, whole_file
from data_shards.files.hdf5_output import Hdf5Output
from data_shards.workers import interrupts
from data_shards.workers.progress import Progress
from gm_train.embedding.translate import translate

_LOG = logging.getLogger(__name__)
#: Bytes of a file that are copied at a time.
_BLOCK = 1 << 24
#: Bytes of an array in a chunk.
_CHUNK = 1 << 21


class AnnDataCopy:
    """A copy that is open for additions.

    Args:
        root: its root group.
        output: the file below an HDF5 root; None for Zarr.
    """

    def __init__(self, root: Any, output: Hdf5Output | None) -> None:
        self._root = root
        self._output = output

    def add_array(self, group: str, name: str, n_rows: int, n_columns: int) -> "AddedArray":
        """Create a float32 array (n_rows, n_columns) in `obsm` or `varm`; one of this name is replaced."""
        parent = self._parent(group, name)
        chunks = (max(1, min(n_rows, _CHUNK // (4 * n_columns))), n_columns)
        create = parent.create_dataset if isinstance(parent, h5py.Group) else parent.create_array
        array = create(name, shape=(n_rows, n_columns), dtype="<f4", chunks=chunks)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return AddedArray(array, self._output)

    def add_element(self, group: str, name: str, element: Any) -> None:
        """Write an element that anndata can write; one of this name is replaced."""
        write_elem(self._parent(group, name), name, element)

    def add_obs(self, name: str, values: Any) -> None:
        """Write a column of `obs`, anything that anndata can write; one of this name is replaced."""
        self.add_element("obs", name, values)
        obs = self._root["obs"]
        columns = [str(column) for column in obs.attrs["column-order"] if column != name]
        order = np.array([*columns, name], dtype=object) if isinstance(obs, h5py.Group) else [*columns, name]
        obs.attrs["column-order"] = order

    def _parent(self, group: str, name: str) -> Any:
        if group not in self._root:
            write_elem(self._root, group, {})
        parent = self._root[group]
        if name in parent:
            _LOG.warning(f"{group}[{name!r}] of the input is replaced in the output")
            del parent[name]
        return parent


class AddedArray:
    """An array that is being written.

    Args:
        array: of HDF5 or Zarr.
        output: the file below an HDF5 array; None for Zarr.
    """

    def __init__(self, array: Any, output: Hdf5Output | None) -> None:
        self._array = array
        self._output = output

    def write(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        """Write rows from row `first` on.

        Raises:
            OSError: the disk is full.
        """
        interrupts.check()
        self._array[first : first + len(rows)] = rows
        if self._output is not None:
            self._output.check()


def refuse_output(source: Path, out: Path) -> None:
    """Raise DataError or OptionError if `out` exists, or has a name or place that a copy of `source` cannot have."""
    if out.suffix not in (".h5ad", ".zarr"):
        raise OptionError(f"{out}: the output is an AnnData file: let its name end in .h5ad or .zarr")
    refuse_existing(out)
    if source.resolve() in out.resolve().parents:
        raise OptionError(f"{out}: is inside {source}, which must not change: choose another folder")


@contextmanager
def copied(source: Path, out: Path) -> Iterator[AnnDataCopy]:
    """Copy a file to `out` and open the copy for additions; `out` appears when the block ends without an error.

    In the block Ctrl-C, and SIGTERM if it is noted, raise KeyboardInterrupt only where `interrupts.check` is called.

    Args:
        source: any file that counts are read from.
        out: a new `.h5ad` file or a new folder `.zarr`.

    Raises:
        DataError: `out` exists or cannot be written, or `source` cannot be translated.
    """
    whole, open_copy = (whole_file, _open_h5ad) if out.suffix == ".h5ad" else (whole_directory, _open_zarr)
    with interrupts.noted(), whole(out) as path, interrupts.deferred(), open_copy(source, path) as copy:
        yield copy


@contextmanager
def _open_h5ad(source: Path, path: Path) -> Iterator[AnnDataCopy]:
    same = source.is_file() and h5py.is_hdf5(source)
    if same:
        _copy_files([(source, path)])
    with Hdf5Output(path, "r+" if same else "w+") as output:
        try:
            with h5py.File(output, "r+" if same else "w") as root:
                if not same:
                    with opened(source) as tree:
                        translate(tree, root, source, output.check)
                yield AnnDataCopy(root, output)
        finally:
            output.check()


@contextmanager
def _open_zarr(source: Path, path: Path) -> Iterator[AnnDataCopy]:
    if source.is_dir():
        # Folders that are links are part of the store; `rglob` would pass them over.
        files = [Path(folder) / name for folder, _, names in os.walk(source, followlinks=True) for name in names]
        _copy_files([(file, path / file.relative_to(source)) for file in files])
        root = zarr.open_group(path, mode="r+", use_consolidated=False)
        is_consolidated = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
    else:
        root = zarr.open_group(path, mode="w", zarr_format=settings.zarr_write_format)
        with opened(source) as tree:
            translate(tree, root, source)
        is_consolidated = True
    yield AnnDataCopy(root, None)
    if is_consolidated:
        zarr.consolidate_metadata(path)


def _copy_files(pairs: list[tuple[Path, Path]]) -> None:
    """Copy the content of files, (source, target) each, a few megabytes at a time."""
    total = sum(source.stat().st_size for source, _ in pairs)
    with Progress(total=total, desc="copying", unit="B", unit_scale=True) as bar:
        for source, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as reading, target.open("wb") as writing:
                while block := reading.read(_BLOCK):
                    writing.write(block)
                    bar.update(len(block))
                    interrupts.check()


@contextmanager
def opened(source: Path) -> Iterator[Any]:
    """Open the root group of a file of counts for the length of the block."""
    root = open_root(source)
    try:
        yield root
    finally:
        if isinstance(root, h5py.File):
            root.close()


def require_groups(source: Path, names: Sequence[str]) -> None:
    """Raise DataError if one of `obs`, `obsm`, `varm` and `uns` of a file is not a group that can be added to."""
    with opened(source) as root:
        for name in names:
            if name in root and not isinstance(root[name], h5py.Group | zarr.Group):
                raise DataError(
                    f"{source}: {name} is stored as before anndata 0.7: write it again with a newer anndata"
                )

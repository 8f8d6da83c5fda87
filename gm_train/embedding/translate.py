"""Translate the tree of an AnnData file between HDF5 and Zarr, in bounded memory.

Both hold the same groups, arrays and attributes. Arrays are copied in pieces; anndata itself reads and writes scalars
and arrays of records, which the two store in different ways.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from anndata.io import read_elem, write_elem
from numcodecs import VLenUTF8
from zarr.core.dtype import VariableLengthUTF8

from data_shards.counts.read_errors import as_data_errors
from data_shards.errors import DataError
from data_shards.workers import interrupts
from data_shards.workers.progress import Progress

#: Elements that are in memory at a time, unless a chunk of the input has more.
_ELEMENTS = 1 << 20
#: The same for texts, which are objects of Python meanwhile.
_TEXTS = 1 << 16


def _nothing() -> None:
    """Check nothing after a piece."""


def translate(source: Any, target: Any, path: Path, check: Callable[[], None] = _nothing) -> None:
    """Copy all groups and arrays of `source` to `target`.

    Args:
        source: root group of an AnnData file, of HDF5 or Zarr.
        target: an empty root group of the other format.
        path: the file of `source`, for messages.
        check: called after each piece; raises OSError if writing has failed.

    Raises:
        DataError: `source` was written by anndata before 0.8, or is damaged.
    """
    if source.attrs.get("encoding-type") != "anndata":
        raise DataError(
            f"{path}: written by an anndata before 0.8, and can only be copied in its own format: let the output end "
            f"in {'.h5ad' if isinstance(source, h5py.Group) else '.zarr'}, or write the file again with a newer anndata"
        )
    with Progress(desc="copying", unit=" arrays") as bar:
        _copy_group(source, target, path, check, bar)


def _copy_group(source: Any, target: Any, path: Path, check: Callable[[], None], bar: Progress) -> None:
    _copy_attributes(source, target)
    for name in source:
        with as_data_errors(path):
            element = source[name]
        if isinstance(element, h5py.Group | zarr.Group):
            _copy_group(element, target.create_group(name), path, check, bar)
        elif element.shape in (None, ()) or element.dtype.names or element.dtype.kind not in "biufcOT":
            with as_data_errors(path):
                value = read_elem(element)
            write_elem(target, name, value)
        else:
            _copy_array(element, target, name, path, check)
        check()
        interrupts.check()
        bar.update()


def _copy_array(source: Any, target: Any, name: str, path: Path, check: Callable[[], None]) -> None:
    is_text = source.dtype.kind in "OT"
    row = max(1, int(np.prod(source.shape[1:])))
    n_rows = max(1, min(source.shape[0], (_TEXTS if is_text else _ELEMENTS) // row))
    if isinstance(target, h5py.Group):
        dtype = h5py.string_dtype() if is_text else source.dtype
        # gzip is the filter that every HDF5 has; it cannot be used without elements.
        options = {"compression": "gzip", "compression_opts": 1} if not is_text and 0 not in source.shape else {}
        chunks = (n_rows, *source.shape[1:]) if 0 not in source.shape else None
        array = target.create_dataset(name, source.shape, dtype, chunks=chunks, **options)
    else:
        options = {"dtype": VariableLengthUTF8() if is_text else source.dtype.newbyteorder("<")}
        if is_text and target.metadata.zarr_format == 2:
            options |= {"filters": [VLenUTF8()], "fill_value": ""}
        chunks = (n_rows, *(max(1, size) for size in source.shape[1:]))
        array = target.create_array(name, shape=source.shape, chunks=chunks, **options)
    _copy_attributes(source, array)
    # Whole chunks of both, so that none is read or written twice.
    size = (getattr(source, "shards", None) or source.chunks or (1,))[0]
    step = max(1, min(size, 4 * n_rows) // n_rows) * n_rows
    if isinstance(source, h5py.Dataset) and h5py.check_string_dtype(source.dtype):
        source = source.asstr()
    for first in range(0, array.shape[0], step):
        with as_data_errors(path):
            values = source[first : first + step]
        array[first : first + step] = values.astype(object) if is_text else values
        check()
        interrupts.check()


def _copy_attributes(source: Any, target: Any) -> None:
    for name, value in dict(source.attrs).items():
        if isinstance(target, h5py.Group | h5py.Dataset):
            is_text_list = isinstance(value, list) and all(isinstance(text, str) for text in value)
            try:
                target.attrs[name] = np.array(value, h5py.string_dtype()) if is_text_list else value
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"the attribute {name!r} of {source.name!r} cannot be stored in HDF5 ({error}): let the name of "
                    "the output end in .zarr"
                ) from error
        else:
            target.attrs[name] = value.tolist() if isinstance(value, np.ndarray | np.generic) else value

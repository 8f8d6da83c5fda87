"""Arrays of a store, read in order through TensorStore; a chunk that is not there is an error."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from data_shards.errors import DataError


class StoredArray:
    """A one-dimensional array of a store.

    Attributes:
        path: its directory.
        size: number of elements.
    """

    def __init__(self, path: Path, array: Any) -> None:
        self.path = path
        self._array = array
        self.size = int(array.shape[0])

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements [start, stop).

        Raises:
            DataError: a chunk is missing or damaged.
        """
        try:
            return np.asarray(self._array[start:stop].read().result())
        except Exception as error:
            raise DataError(f"{self.path}: elements {start:,} to {stop:,}: {first_line(error)}") from error


def open_array(store: Path, dataset: str, name: str) -> StoredArray:
    """Open `tokens`, `indptr` or `split` of a data set.

    Raises:
        DataError: its metadata is missing or damaged.
    """
    path = store / dataset / name
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        # Without this a shard file that is gone reads as zeros.
        "fill_missing_data_reads": False,
    }
    try:
        return StoredArray(path, ts.open(spec, read=True, open=True).result())
    except Exception as error:
        raise DataError(f"{path}: cannot be opened ({first_line(error)}): build the store again") from error


def first_line(error: Exception) -> str:
    """The first line of what TensorStore says, which goes on for several."""
    return str(error).strip().splitlines()[0]

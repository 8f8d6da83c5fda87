"""Arrays of a store, read through TensorStore; a chunk that is not there is an error."""

from collections.abc import Callable
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
        chunk, shard: elements of an inner chunk and of a file.
    """

    def __init__(self, path: Path, array: Any) -> None:
        self.path = path
        self._array = array
        self.size = int(array.shape[0])
        layout = array.chunk_layout
        self.chunk, self.shard = int(layout.read_chunk.shape[0]), int(layout.write_chunk.shape[0])

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements [start, stop).

        Raises:
            DataError: a chunk is missing or damaged.
        """
        return self.begin(start, stop)()

    def begin(self, start: int, stop: int) -> Callable[[], npt.NDArray[Any]]:
        """Begin to read elements [start, stop); calling the result waits for them, and raises as `read` does."""
        try:
            pending = self._array[start:stop].read()
        except Exception as error:  # outside the array, where a damaged indptr points
            raise self._damage(start, stop, error) from error

        def wait() -> npt.NDArray[Any]:
            try:
                return np.asarray(pending.result())
            except Exception as error:
                raise self._damage(start, stop, error) from error

        return wait

    def _damage(self, start: int, stop: int, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: elements {start:,} to {stop:,} cannot be read ({first_line(error)}); "
            f"`gm-train data verify {self.path.parent.parent}` names every damaged chunk, then build the store again"
        )


def open_array(store: Path, dataset: str, name: str, context: ts.Context | None = None) -> StoredArray:
    """Open `tokens`, `indptr` or `split` of a data set.

    Args:
        store: the store.
        dataset: name of the data set.
        name: name of the array.
        context: holds the chunk cache, if chunks are to be kept.

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
        return StoredArray(path, ts.open(spec, read=True, open=True, context=context).result())
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read ({first_line(error)}); `gm-train data verify {store}` names everything that is "
            "damaged, then build the store again"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of what TensorStore says, which goes on for several."""
    return str(error).strip().splitlines()[0]

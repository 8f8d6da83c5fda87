"""Arrays of a store, read through TensorStore; a chunk that is not there is an error."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from data_shards.errors import DataError
from data_shards.files import location
from data_shards.files.location import Location, advice, first_line, open_context, status

log = logging.getLogger(__name__)

#: What trying again does not mend; requests to a server have been tried again by TensorStore when they fail.
_FINAL = ("NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE", "PERMISSION_DENIED", "ABORTED")

_CHECKSUM_RETRIES = 2  # most often the file itself is damaged


class ChunkDamaged(DataError):
    """The checksum of a chunk does not fit its content, however often it is read."""


class StoredArray:
    """A one-dimensional array of a store.

    Attributes:
        path: its directory.
        size: number of elements.
        chunk, shard: elements of an inner chunk and of a file.
    """

    def __init__(self, path: Location, array: Any) -> None:
        self.path = path
        self._array = array
        self._dtype = array.dtype.numpy_dtype
        self.size = int(array.shape[0])
        layout = array.chunk_layout
        self.chunk, self.shard = int(layout.read_chunk.shape[0]), int(layout.write_chunk.shape[0])

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Elements [start, stop).

        Raises:
            ChunkDamaged: the checksum of a chunk fails.
            DataError: a chunk is missing or cannot be read.
        """
        return self.begin(start, stop)()

    def begin(self, start: int, stop: int, retry: bool = True, out: npt.NDArray[Any] | None = None) -> "Reading":
        """Begin to read elements [start, stop), into `out` of as many elements if it is given."""
        try:
            stretch = self._array[start:stop].translate_to[0]
        except Exception as error:  # outside the array, where a damaged indptr points
            raise self._error(start, stop, error) from error
        if out is None:
            out = np.empty(stop - start, self._dtype)
        return Reading(stretch, out, lambda error: self._error(start, stop, error), retry)

    def _error(self, start: int, stop: int, error: Exception) -> DataError:
        if told := advice(error):
            return DataError(f"{self.path}: elements {start:,} to {stop:,} cannot be read ({first_line(error)}){told}")
        # Without its index a shard is lost as a whole.
        damaged = status(error) == "DATA_LOSS" and "shard index" not in str(error)
        return (ChunkDamaged if damaged else DataError)(
            f"{self.path}: elements {start:,} to {stop:,} cannot be read ({first_line(error)}); "
            f"`gm-train data verify {self.path.parent.parent}` names every damaged chunk, then build the store again"
        )


class Reading:
    """Elements that are being read; calling it waits for them.

    Read errors are met by a few further tries (`place.RETRIES`): disks and memory fail for a moment, too.
    """

    def __init__(
        self, stretch: Any, out: npt.NDArray[Any], explain: Callable[[Exception], DataError], retry: bool
    ) -> None:
        self._stretch, self._out, self._explain, self._retry = stretch, out, explain, retry
        self._failed = False
        self._pending = self._begin()

    def _begin(self) -> Any:
        # Memory that the caller has is filled faster than new memory, and does not scatter over the heap.
        return ts.array(self._out).write(self._stretch).commit

    def done(self) -> bool:
        """Whether calling it would not wait."""
        return bool(self._pending.done())

    def has_let_go(self) -> bool:
        """Whether nothing writes into `out` any more: other chunks of a try that failed may still be under way."""
        return self.done() and not self._failed

    def __call__(self) -> npt.NDArray[Any]:
        """The elements.

        Raises:
            ChunkDamaged: the checksum of a chunk fails.
            DataError: a chunk is missing or cannot be read.
        """
        number = 1
        while True:
            try:
                self._pending.result()
                return self._out
            except Exception as error:
                self._failed = True
                most = _CHECKSUM_RETRIES if status(error) == "DATA_LOSS" else location.RETRIES.count
                if not self._retry or status(error) in _FINAL or number > most:
                    raise self._explain(error) from error
                log.warning("%s; trying again", first_line(error))
            location.RETRIES.wait(number)
            number += 1
            self._pending = self._begin()


def open_array(store: Location, dataset: str, name: str, context: ts.Context | None = None) -> StoredArray:
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
        "kvstore": location.kvstore(path),
        # Without this a shard file that is gone reads as zeros.
        "fill_missing_data_reads": False,
        # A store does not change: what is in the cache need not be asked for again.
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
    }
    try:
        array = ts.open(spec, read=True, open=True, context=context or open_context()).result()
        return StoredArray(path, array)
    except Exception as error:
        told = advice(error) or (
            f"; `gm-train data verify {store}` names everything that is damaged, then build the store again"
        )
        raise DataError(f"{path}: cannot be read ({first_line(error)}){told}") from error

"""Arrays of a store, read through TensorStore; a missing chunk is an error."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from data_shards.errors import DataError
from data_shards.files import location
from data_shards.files.location import Location, advice, error_status, first_line, open_context

log = logging.getLogger(__name__)

#: Errors for which another try cannot help. TensorStore itself has already repeated requests to a server.
_FINAL = ("NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE", "PERMISSION_DENIED", "ABORTED")

_CHECKSUM_RETRIES = 2  # few, because most often the file itself is damaged


class ChunkDamaged(DataError):
    """The checksum of a chunk does not match its content, even after further tries."""


class StoredArray:
    """A one-dimensional array of a store.

    Attributes:
        path: its folder.
        size: number of elements.
        chunk, shard: number of elements in an inner chunk and in a file.
    """

    def __init__(self, path: Location, array: Any) -> None:
        self.path = path
        self._array = array
        self._dtype = array.dtype.numpy_dtype
        self.size = int(array.shape[0])
        layout = array.chunk_layout
        self.chunk, self.shard = int(layout.read_chunk.shape[0]), int(layout.write_chunk.shape[0])

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read elements [start, stop).

        Raises:
            ChunkDamaged: the checksum of a chunk fails.
            DataError: a chunk is missing or cannot be read.
        """
        return self.begin(start, stop)()

    def begin(self, start: int, stop: int, retry: bool = True, out: npt.NDArray[Any] | None = None) -> "Reading":
        """Begin to read elements [start, stop).

        Args:
            start, stop: the elements.
            retry: try again when a read fails.
            out: (stop - start,), of the array's dtype, takes the elements; None allocates new memory.

        Raises:
            DataError: the elements lie outside of the array.
        """
        try:
            stretch = self._array[start:stop].translate_to[0]
        except Exception as error:  # outside of the array: a damaged indptr points there
            raise self._error(start, stop, error) from error
        if out is None:
            out = np.empty(stop - start, self._dtype)
        return Reading(stretch, out, lambda error: self._error(start, stop, error), retry)

    def _error(self, start: int, stop: int, error: Exception) -> DataError:
        if what_to_do := advice(error):
            return DataError(
                f"{self.path}: elements {start:,} to {stop:,} cannot be read ({first_line(error)}){what_to_do}"
            )
        # A damaged index loses the whole shard, not one chunk.
        damaged = error_status(error) == "DATA_LOSS" and "shard index" not in str(error)
        return (ChunkDamaged if damaged else DataError)(
            f"{self.path}: elements {start:,} to {stop:,} cannot be read ({first_line(error)}); "
            f"run `gm-train data verify {self.path.parent.parent}` to list damaged chunks, then build the store again"
        )


class Reading:
    """Elements that are being read; call it to wait for them.

    A failed read is tried again a few times (`location.RETRIES`): disks and memory, too, can fail for a moment.

    Args:
        stretch: the TensorStore array of the elements.
        out: takes the elements.
        explain: makes the error to raise from that of TensorStore.
        retry: whether to try again when a read fails.
    """

    def __init__(
        self, stretch: Any, out: npt.NDArray[Any], explain: Callable[[Exception], DataError], retry: bool
    ) -> None:
        self._stretch, self._out, self._explain, self._retry = stretch, out, explain, retry
        self._failed = False
        self._pending = self._begin()

    def _begin(self) -> Any:
        # Existing memory is filled faster than new memory, and does not fragment the heap.
        return ts.array(self._out).write(self._stretch).commit

    def done(self) -> bool:
        """Whether a call returns at once, without waiting."""
        return bool(self._pending.done())

    def has_let_go(self) -> bool:
        """Whether nothing writes into `out` any more. False after a failed try: its other chunks may still come."""
        return self.done() and not self._failed

    def __call__(self) -> npt.NDArray[Any]:
        """Wait for the elements and return them.

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
                most = _CHECKSUM_RETRIES if error_status(error) == "DATA_LOSS" else location.RETRIES.count
                if not self._retry or error_status(error) in _FINAL or number > most:
                    raise self._explain(error) from error
                log.warning("%s; trying again", first_line(error))
            location.RETRIES.wait(number)
            number += 1
            self._pending = self._begin()


def open_array(store: Location, dataset: str, name: str, context: ts.Context | None = None) -> StoredArray:
    """Open `tokens`, `indptr`, `split`, `values` or `cell_hash` of a data set.

    Args:
        store: the store.
        dataset: name of the data set.
        name: name of the array.
        context: holds the chunk cache; None reads without one.

    Raises:
        DataError: its metadata is missing or damaged.
    """
    path = store / dataset / name
    spec = {
        "driver": "zarr3",
        "kvstore": location.kvstore(path),
        # Otherwise a missing shard file would read as zeros.
        "fill_missing_data_reads": False,
        # A store does not change: cached chunks need not be checked again.
        "recheck_cached_data": "open",
        "recheck_cached_metadata": "open",
    }
    try:
        array = ts.open(spec, read=True, open=True, context=context or open_context()).result()
        return StoredArray(path, array)
    except Exception as error:
        what_to_do = advice(error) or (
            f"; run `gm-train data verify {store}` to list everything that is damaged, then build the store again"
        )
        raise DataError(f"{path}: cannot be read ({first_line(error)}){what_to_do}") from error

"""Reading arrays of HDF5 that are compressed with gzip, twice as fast as HDF5 does.

CELLxGENE's files are. HDF5 hands out their chunks as they are stored; ISA-L takes them apart, outside of Python's lock.
"""

from contextlib import suppress
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

_NotGzip: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]  # its stub calls it an instance


#: Bytes of a chunk.
_MOST = 1 << 26


class SpanReader:
    """Spans of a one-dimensional array of an AnnData file, read one after the other.

    Args:
        array: of HDF5 or Zarr.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._is_gzip = isinstance(array, h5py.Dataset) and _is_gzip(array)
        self._last: tuple[int, npt.NDArray[Any]] | None = None

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The elements [start, stop), of the type in which they are stored, as far as there are any."""
        stop = min(stop, self._array.shape[0])
        if self._is_gzip and start < stop:
            # What is wrong with a chunk, or was never written of it, is for HDF5 to say.
            with suppress(OSError, RuntimeError, ValueError, _NotGzip):
                return self._inflate(start, stop)
        return np.asarray(self._array[start:stop])

    def _inflate(self, start: int, stop: int) -> npt.NDArray[Any]:
        values = np.empty(stop - start, self._array.dtype)
        size = self._array.chunks[0]
        for number in range(start // size, -(-stop // size)):
            chunk, first = self._chunk(number), number * size
            low, high = max(start, first), min(stop, first + size)
            values[low - start : high - start] = chunk[low - first : high - first]
        return values

    def _chunk(self, number: int) -> npt.NDArray[Any]:
        """A whole chunk; the last one stays, since the next span begins in it."""
        last = self._last  # another thread may be reading
        if last is not None and last[0] == number:
            return last[1]
        size, dtype = self._array.chunks[0], self._array.dtype
        skipped, content = self._array.id.read_direct_chunk((number * size,))
        if not skipped:  # or it was not worth compressing
            content = isal_zlib.decompress(content, bufsize=size * dtype.itemsize)
        chunk: npt.NDArray[Any] = np.frombuffer(content, dtype)
        if len(chunk) != size:
            raise ValueError(f"a chunk of {len(chunk):,} elements where there are {size:,}")
        self._last = number, chunk
        return chunk


def _is_gzip(dataset: h5py.Dataset) -> bool:
    """Whether chunks, of a size that may stay in memory, are compressed by gzip and by nothing else."""
    filters = dataset.id.get_create_plist()
    plain = dataset.dtype.kind in "iuf" and dataset.ndim == 1 and dataset.chunks is not None
    if not plain or dataset.chunks[0] * dataset.dtype.itemsize > _MOST:
        return False
    return bool(filters.get_nfilters() == 1 and filters.get_filter(0)[0] == h5py.h5z.FILTER_DEFLATE)

"""Let HDF5 write to disks that may fill up."""

import io
from pathlib import Path
from typing import Any


class Hdf5Output(io.FileIO):
    """A file whose `write` keeps the first error for `check` instead of raising it inside HDF5.

    After a failed write HDF5 cannot close some of its datasets, and crashes when the program ends.

    Args:
        path: the file.
        mode: "w+" for a new file, "r+" to change one.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._error: OSError | None = None

    def write(self, values: Any) -> int:
        """Write all bytes, or nothing more after an error; return their number in any case."""
        left = memoryview(values).cast("B")
        size = len(left)
        while len(left) and self._error is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self._error = error
        return size

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer, with zeros past the end of the file: h5py assumes that it was filled."""
        left = memoryview(buffer).cast("B")
        size = len(left)
        while len(left) and (n_read := super().readinto(left)):
            left = left[n_read:]
        left[:] = bytes(len(left))
        return size

    def check(self) -> None:
        """Raise OSError if a write has failed."""
        if self._error is not None:
            raise self._error

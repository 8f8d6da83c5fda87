"""The token store: what lies on disk and the one writer that makes it.

A store is a Zarr v3 group. Its attributes are the manifest; its root holds the files of the tokenizer; each data set is
a group with `tokens` (uint16, the cells' tokens one after the other), `indptr` (int64), `split` (uint8), if they were
kept `values` (float32, the normalised expression behind each token) and, beside them, `obs.parquet`.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.files.location import first_line, kvstore

#: Type, elements of an inner chunk and of a shard. A block begins anywhere in a chunk: with chunks of its own size,
#: twice what it needs would be decoded.
LAYOUT = {
    "tokens": ("<u2", 1 << 14, 1 << 24),
    "indptr": ("<i8", 1 << 12, 1 << 21),
    "values": ("<f4", 1 << 14, 1 << 24),
    "split": ("|u1", 1 << 12, 1 << 21),
}
#: What a block has, about.
BLOCK_TOKENS = 1 << 16
MAX_BLOCK_CELLS = 128
MIN_BLOCKS = 64


def choose_block_cells(cells: Sequence[int], n_tokens: int) -> int:
    """Cells of a block: about 65,536 tokens, and at least 64 blocks in the store if it can be.

    The power of two nearest (by ratio) to the cells of so many tokens, at most 128, halved until the store has 64
    blocks or blocks of one cell.
    """
    mean_tokens = n_tokens / max(1, sum(cells))
    ideal = BLOCK_TOKENS / max(1.0, mean_tokens)
    block = min(MAX_BLOCK_CELLS, 1 << max(0, round(math.log2(ideal))))
    while block > 1 and sum(-(-n // block) for n in cells) < MIN_BLOCKS:
        block //= 2
    return block


class ArrayWriter:
    """Appends to a new one-dimensional array of a store, whole shards at a time, and hashes what it writes.

    Args:
        folder: the group, a directory that exists.
        name: one of `LAYOUT`.

    Raises:
        DataError: it cannot be written, here and in `append` and `close`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        dtype, chunk, self._shard = LAYOUT[name]
        self._dtype = np.dtype(dtype)
        self._path = folder / name
        with self._writable():
            zarr.create_array(
                self._path,
                shape=(0,),
                dtype=dtype,
                chunks=(chunk,),
                shards=(self._shard,),
                compressors=[BloscCodec(typesize=self._dtype.itemsize, cname="lz4", shuffle="shuffle"), Crc32cCodec()],
                fill_value=0,
                overwrite=True,
            )
            spec = {
                "driver": "zarr3",
                "kvstore": kvstore(self._path),
                # A chunk that is not there is an error to the reader: chunks of zeros are written too.
                "store_data_equal_to_fill_value": True,
                # Whoever makes the store whole flushes its files.
                "context": {"file_io_sync": False},
            }
            self._array = ts.open(spec, open=True, read=True, write=True).result()
        self._waiting: list[npt.NDArray[Any]] = []
        self._n_waiting = 0
        self._n_written = 0
        self._hash = hashlib.sha256()

    def append(self, values: npt.NDArray[Any]) -> None:
        values = np.ascontiguousarray(values, self._dtype)
        self._hash.update(values.data)
        self._waiting.append(values)
        self._n_waiting += len(values)
        if self._n_waiting >= self._shard:
            self._write((self._n_waiting // self._shard) * self._shard)

    def close(self) -> str:
        """Write what waits and return the SHA-256 (hex) of all values, little-endian."""
        self._write(self._n_waiting)
        return self._hash.hexdigest()

    def _write(self, size: int) -> None:
        if size == 0:
            return
        values = np.concatenate(self._waiting)
        end = self._n_written + size
        with self._writable():
            self._array = self._array.resize(exclusive_max=[end]).result()
            self._array[self._n_written : end].write(values[:size]).result()
        self._n_written = end
        self._waiting = [values[size:].copy()]
        self._n_waiting = len(values) - size

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TensorStore has kinds of its own
            raise DataError(f"{self._path}: cannot be written ({first_line(error)}): make room") from error


def content_hash(tokens: str, indptr: str, split: str, values: str | None = None) -> str:
    """SHA-256 (hex) of a data set from those of its arrays."""
    hashes = [tokens, indptr, split] if values is None else [tokens, indptr, split, values]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@dataclass(frozen=True)
class ArrayHashes:
    """SHA-256 (hex) of the arrays of a data set, all but its splits; no values is none."""

    tokens: str
    indptr: str
    values: str | None = None


class DatasetWriter:
    """Writes the cells of one data set into a store that is being made.

    Args:
        store: a directory that exists.
        name: the data set.
        values: whether its cells come with values.
    """

    def __init__(self, store: Path, name: str, values: bool = False) -> None:
        self.folder = store / name
        zarr.create_group(self.folder)
        self._tokens = ArrayWriter(self.folder, "tokens")
        self._indptr = ArrayWriter(self.folder, "indptr")
        self._indptr.append(np.zeros(1, np.int64))
        self._values = ArrayWriter(self.folder, "values") if values else None
        self.n_cells = 0
        self.n_tokens = 0

    def append(
        self,
        tokens: npt.NDArray[np.uint16],
        indptr: npt.NDArray[np.int64],
        values: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Add cells: their tokens, the n + 1 places where they begin and end, and the values of the tokens."""
        self._tokens.append(tokens)
        self._indptr.append(indptr[1:] + self.n_tokens)
        if self._values is not None:
            assert values is not None
            self._values.append(values)
        self.n_cells += len(indptr) - 1
        self.n_tokens += len(tokens)

    def close(self) -> ArrayHashes:
        """Finish all arrays but the splits: their hashes."""
        values = self._values.close() if self._values is not None else None
        return ArrayHashes(self._tokens.close(), self._indptr.close(), values)


def hash_files(store: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of files in the root of a store."""
    return {name: hash_path(store / name) for name in names if (store / name).exists()}

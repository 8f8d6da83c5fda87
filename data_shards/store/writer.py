"""The layout of a token store on disk, and the only writer of it.

A store is a Zarr v3 group. Its attributes are the manifest; its root holds the files of the tokenizer. Each data set is
a group with `tokens` (uint16, the tokens of all cells, cell after cell), `indptr` (int64, where each cell begins),
`split` (uint8), `cell_hash` (uint64, a hash of each cell's counts) if it was ranked from counts, if asked for `values`
(float32, the normalised expression behind each token), and `obs.parquet`.
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
from data_shards.hashing import U64

#: Of each array: dtype, elements of an inner chunk, elements of a shard. Chunks are smaller than a block: a block may
#: begin anywhere in a chunk, and with chunks of its own size twice as much as needed would be decoded.
LAYOUT = {
    "tokens": ("<u2", 1 << 14, 1 << 24),
    "indptr": ("<i8", 1 << 12, 1 << 21),
    "values": ("<f4", 1 << 14, 1 << 24),
    "split": ("|u1", 1 << 12, 1 << 21),
    "cell_hash": ("<u8", 1 << 12, 1 << 21),
}
#: Tokens of a block, about.
BLOCK_TOKENS = 1 << 16
MAX_BLOCK_CELLS = 128
MIN_BLOCKS = 64


def choose_block_cells(cells: Sequence[int], n_tokens: int) -> int:
    """Choose the cells per block: about 65,536 tokens, and at least 64 blocks in the store if possible.

    It is the power of two nearest (by ratio) to the number of cells with 65,536 tokens, at most 128. It is halved until
    the store has 64 blocks, or blocks have one cell.

    Args:
        cells: number of cells in each data set.
        n_tokens: number of tokens in the store.
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
        folder: the group, an existing directory.
        name: a key of `LAYOUT`.

    Raises:
        DataError: the array cannot be written; `append` and `close` raise this, too.
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
                # For a reader a missing chunk is an error, so that chunks of zeros must be written, too.
                "store_data_equal_to_fill_value": True,
                # The caller flushes all files once the store is complete.
                "context": {"file_io_sync": False},
            }
            self._array = ts.open(spec, open=True, read=True, write=True).result()
        self._waiting: list[npt.NDArray[Any]] = []
        self._n_waiting = 0
        self._n_written = 0
        self._hash = hashlib.sha256()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add values (n,); they are converted to the dtype of the array."""
        values = np.ascontiguousarray(values, self._dtype)
        self._hash.update(values.data)
        self._waiting.append(values)
        self._n_waiting += len(values)
        if self._n_waiting >= self._shard:
            self._write((self._n_waiting // self._shard) * self._shard)

    def close(self) -> str:
        """Write the remaining values and return the SHA-256 (hex) of all values, little-endian."""
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
        except Exception as error:  # TensorStore raises its own types
            raise DataError(f"{self._path}: cannot be written ({first_line(error)}): make room") from error


def content_hash(tokens: str, indptr: str, split: str, values: str | None = None) -> str:
    """Combine the SHA-256 (hex) of a data set's arrays into one.

    Args:
        tokens, indptr, split, values: SHA-256 (hex) of each array; `values` is None if the store has none.
    """
    hashes = [tokens, indptr, split] if values is None else [tokens, indptr, split, values]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


@dataclass(frozen=True)
class ArrayHashes:
    """SHA-256 (hex) of the arrays of a data set except `split`; None for those that it does not have."""

    tokens: str
    indptr: str
    values: str | None = None
    cell_hash: str | None = None


class DatasetWriter:
    """Writes the cells of one data set into a new store.

    Args:
        store: an existing directory.
        name: name of the data set.
        values: whether `append` gets values.
        hashes: whether `append` gets hashes of the counts.
    """

    def __init__(self, store: Path, name: str, values: bool = False, hashes: bool = False) -> None:
        self.folder = store / name
        zarr.create_group(self.folder)
        self._tokens = ArrayWriter(self.folder, "tokens")
        self._indptr = ArrayWriter(self.folder, "indptr")
        self._indptr.append(np.zeros(1, np.int64))
        self._values = ArrayWriter(self.folder, "values") if values else None
        self._hashes = ArrayWriter(self.folder, "cell_hash") if hashes else None
        self.n_cells = 0
        self.n_tokens = 0

    def append(
        self,
        tokens: npt.NDArray[np.uint16],
        indptr: npt.NDArray[np.int64],
        values: npt.NDArray[np.float32] | None = None,
        hashes: U64 | None = None,
    ) -> None:
        """Add n cells.

        Args:
            tokens: uint16 (n_tokens,), cell after cell.
            indptr: int64 (n + 1,), from 0: where each cell begins in `tokens`.
            values: float32 (n_tokens,), of each token, if the data set has values.
            hashes: uint64 (n,), of the counts of each cell, if the data set has hashes.
        """
        self._tokens.append(tokens)
        self._indptr.append(indptr[1:] + self.n_tokens)
        if self._values is not None:
            assert values is not None
            self._values.append(values)
        if self._hashes is not None:
            assert hashes is not None
            self._hashes.append(hashes)
        self.n_cells += len(indptr) - 1
        self.n_tokens += len(tokens)

    def close(self) -> ArrayHashes:
        """Finish all arrays except `split`, and return their hashes."""
        values = self._values.close() if self._values is not None else None
        hashes = self._hashes.close() if self._hashes is not None else None
        return ArrayHashes(self._tokens.close(), self._indptr.close(), values, hashes)


def hash_files(store: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 (hex) of those of the named files that exist in the root of a store."""
    return {name: hash_path(store / name) for name in names if (store / name).exists()}

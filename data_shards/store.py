"""The token store: what lies on disk and the one writer that makes it.

A store is a Zarr v3 group. Its attributes are the manifest; its root holds the files of the tokenizer; each data set is
a group with `tokens` (uint16, the cells' tokens one after the other), `indptr` (int64), `split` (uint8) and, beside
them, `obs.parquet`.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from data_shards.output import hash_path

#: Elements of an inner chunk and of a shard. A block begins anywhere in a chunk: with chunks of its own size, twice
#: what it needs would be decoded.
LAYOUT = {"tokens": (1 << 14, 1 << 24), "indptr": (1 << 12, 1 << 21), "split": (1 << 12, 1 << 21)}
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
    """Appends to a one-dimensional array of a store, whole shards at a time, and hashes what it writes."""

    def __init__(self, group: zarr.Group, name: str, dtype: str) -> None:
        chunk, self._shard = LAYOUT[name]
        self._dtype = np.dtype(dtype)
        self._array: Any = group.create_array(
            name,
            shape=(0,),
            dtype=dtype,
            chunks=(chunk,),
            shards=(self._shard,),
            compressors=[BloscCodec(typesize=self._dtype.itemsize, cname="lz4", shuffle="shuffle"), Crc32cCodec()],
            fill_value=0,
            # A chunk that is not there is an error to the reader: chunks of zeros are written too.
            config={"write_empty_chunks": True},
        )
        self._waiting: list[npt.NDArray[Any]] = []
        self._n_waiting = 0
        self._n_written = 0
        self._hash = hashlib.sha256()

    def append(self, values: npt.NDArray[Any]) -> None:
        values = np.ascontiguousarray(values, self._dtype)
        self._hash.update(values.tobytes())
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
        self._array.resize((self._n_written + size,))
        self._array[self._n_written :] = values[:size]
        self._n_written += size
        self._waiting = [values[size:]]
        self._n_waiting = len(values) - size


def content_hash(tokens: str, indptr: str, split: str) -> str:
    """SHA-256 (hex) of a data set from those of its arrays."""
    return hashlib.sha256(f"{tokens}\n{indptr}\n{split}".encode()).hexdigest()


class DatasetWriter:
    """Writes the cells of one data set into a store that is being made."""

    def __init__(self, store: Path, name: str) -> None:
        self.folder = store / name
        self._group = zarr.open_group(store, mode="a").create_group(name)
        self._tokens = ArrayWriter(self._group, "tokens", "<u2")
        self._indptr = ArrayWriter(self._group, "indptr", "<i8")
        self._indptr.append(np.zeros(1, np.int64))
        self.n_cells = 0
        self.n_tokens = 0

    def append(self, tokens: npt.NDArray[np.uint16], indptr: npt.NDArray[np.int64]) -> None:
        """Add cells: their tokens and the n + 1 places where they begin and end."""
        self._tokens.append(tokens)
        self._indptr.append(indptr[1:] + self.n_tokens)
        self.n_cells += len(indptr) - 1
        self.n_tokens += len(tokens)

    def close(self) -> tuple[str, str]:
        """Finish tokens and indptr: their hashes."""
        return self._tokens.close(), self._indptr.close()

    def split_writer(self) -> ArrayWriter:
        """For one uint8 a cell, in the order of the cells."""
        return ArrayWriter(self._group, "split", "|u1")


def hash_files(store: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of files in the root of a store."""
    return {name: hash_path(store / name) for name in names if (store / name).exists()}

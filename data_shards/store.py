"""The token store: what lies on disk and the one writer that makes it.

A store is a Zarr v3 group. Its attributes are the manifest; its root holds the files of the tokenizer; each data set is
a group with `tokens` (uint16, the cells' tokens one after the other), `indptr` (int64), `split` (uint8) and, beside
them, `obs.parquet`.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from data_shards.counts import CountOptions
from data_shards.errors import DataError
from data_shards.output import hash_path

SCHEMA = 2
#: Values of `split`.
TRAIN, VALIDATION, TEST = 0, 1, 2
#: Elements of an inner chunk and of a shard.
LAYOUT = {"tokens": (1 << 16, 1 << 24), "indptr": (1 << 14, 1 << 21), "split": (1 << 14, 1 << 21)}
MAX_BLOCK_CELLS = 128
MIN_BLOCKS = 64


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of a store.

    Attributes:
        name: its group, named after the stem of the file.
        n_cells, n_tokens: cells kept, and their tokens.
        n_train, n_validation, n_test: cells of each split.
        content_hash: SHA-256 of tokens, indptr and split.
        split_by: "donor", "cell" or "none".
        donor_key: column of obs with the donors, if they were split by donor.
        source_file: name of the file, without its folder.
        source_hash: SHA-256 of the file.
        source_cells: cells in the file.
        filtered_cells: cells that the filters left out.
        empty_cells: further cells without a token.
        counts: how the counts were read (`CountOptions`).
        min_genes, min_counts: the filters, both over all genes as delivered.
        obs_hash: SHA-256 of `obs.parquet`.
        genes: how its gene ids were found (`GeneReport`), and `in_vocabulary`, how many genes of the vocabulary it has.
    """

    name: str
    n_cells: int
    n_tokens: int
    n_train: int
    n_validation: int
    n_test: int
    content_hash: str
    split_by: str
    donor_key: str | None
    source_file: str
    source_hash: str
    source_cells: int
    filtered_cells: int
    empty_cells: int
    counts: dict[str, Any]
    min_genes: int
    min_counts: float
    obs_hash: str
    genes: dict[str, Any]

    @property
    def count_options(self) -> CountOptions:
        """How to read the same counts again."""
        return CountOptions(**self.counts)


@dataclass(frozen=True)
class Manifest:
    """What a store says of itself.

    Attributes:
        schema: version of the layout.
        vocabulary_hash, medians_hash, tokenizer_hash: hashes of the tokenizer that made it.
        medians_file_hash: hash of the whole medians file (`Medians.hash`) that the store was made with.
        kind: kind of the gene ids.
        n_genes: genes of the vocabulary.
        top_k: most tokens of a cell.
        dither: whether counts were dithered before ranking.
        block_cells: cells of a block, the unit of shuffling.
        options: how the splits were drawn, the file with the genes of the vocabulary and its SHA-256 if there was one,
            and whatever else the store was made with.
        datasets: the data sets, in order.
        files: SHA-256 of each file in the root.
    """

    schema: int
    vocabulary_hash: str
    medians_hash: str
    tokenizer_hash: str
    medians_file_hash: str
    kind: str
    n_genes: int
    top_k: int
    dither: bool
    block_cells: int
    options: dict[str, Any]
    datasets: tuple[DatasetEntry, ...]
    files: dict[str, str] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of what decides the content: the same for the same cells on every machine."""
        content = [
            self.schema,
            self.tokenizer_hash,
            self.block_cells,
            [[entry.name, entry.n_cells, entry.n_tokens, entry.content_hash] for entry in self.datasets],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def n_cells(self) -> int:
        return sum(entry.n_cells for entry in self.datasets)

    @property
    def n_tokens(self) -> int:
        return sum(entry.n_tokens for entry in self.datasets)

    @classmethod
    def load(cls, store: str | Path) -> "Manifest":
        """Read the manifest of a store.

        Raises:
            DataError: there is no store, it is of another version, or its manifest is damaged.
        """
        if not Path(store).exists():
            raise DataError(f"{store}: no such store: make it with `gm-train data shards`")
        try:
            attrs: dict[str, Any] = dict(zarr.open_group(store, mode="r").attrs)
            if attrs["schema"] != SCHEMA:
                raise DataError(
                    f"{store}: layout version {attrs['schema']}, this program reads {SCHEMA}: make it again"
                )
            check, expected = attrs.pop("check"), attrs.pop("hash")
            whole = check == _check({**attrs, "hash": expected})
            attrs["datasets"] = tuple(DatasetEntry(**entry) for entry in attrs["datasets"])
            manifest = cls(**attrs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{store}: not a token store, or damaged ({error}): make it with `gm-train data shards`"
            ) from error
        if not whole or manifest.hash != expected:
            raise DataError(f"{store}: the manifest is damaged: make the store again with `gm-train data shards`")
        return manifest

    def save(self, store: Path) -> None:
        content = {**asdict(self), "hash": self.hash}
        zarr.open_group(store, mode="a").attrs.put({**content, "check": _check(content)})


def _check(content: dict[str, Any]) -> str:
    """SHA-256 (hex) of a whole manifest: unlike its `hash`, which names the content, it finds any damage."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def choose_block_cells(cells: Sequence[int], n_tokens: int) -> int:
    """Cells of a block: about one inner chunk of tokens, and at least 64 blocks in the store if it can be.

    The power of two nearest (by ratio) to the cells of one inner chunk, at most 128, halved until the store has 64
    blocks or blocks of one cell.
    """
    mean_tokens = n_tokens / max(1, sum(cells))
    ideal = LAYOUT["tokens"][0] / max(1.0, mean_tokens)
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

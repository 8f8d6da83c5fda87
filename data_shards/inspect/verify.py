"""Read a whole store again to find every damaged file and chunk.

Each array is read once, a few shards ahead of the one being checked, and hashed. Its elements are checked as well,
because a hash alone does not say what is wrong.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.files.location import Location, first_line, hash_location, location_of
from data_shards.store.arrays import StoredArray, open_array
from data_shards.store.manifest import TEST, TRAIN, VALIDATION, DatasetEntry, Manifest
from data_shards.store.writer import LAYOUT, content_hash
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import FIRST_GENE
from data_shards.workers.progress import Progress

#: Shards that are read while one is checked; the largest, those of `values`, have 64 MiB.
_AHEAD = 3


def find_damage(store: str | Location) -> list[str]:
    """Find every file and chunk of a store that is not what was written.

    Returns:
        One line for each; an empty list if the store is intact.

    Raises:
        DataError: there is no store, its manifest cannot be read, or its server cannot be reached.
    """
    path = location_of(store)
    manifest = Manifest.load(path)
    problems = []
    for name, expected in manifest.files.items():
        problems += _check_file(path / name, expected)
    if not problems:
        try:
            tokenizer = Tokenizer.load(path)
            if tokenizer.hash != manifest.tokenizer_hash:
                problems.append(f"{path}: the tokenizer is not the one that made the store")
        except DataError as error:
            problems.append(str(error))
    with Progress(desc=f"reading {path.name}", unit="B", unit_scale=True) as progress:
        progress.total = sum(
            size * np.dtype(LAYOUT[name][0]).itemsize
            for entry in manifest.datasets
            for name, size in _sizes(entry, manifest).items()
        )
        for entry in manifest.datasets:
            problems += _check_file(path / entry.name / "obs.parquet", entry.obs_hash)
            problems += _check_dataset(path, entry, manifest, progress)
    return problems


def _check_file(path: Location, expected: str) -> list[str]:
    if not path.is_file():
        return [f"{path}: is missing"]
    return [] if hash_location(path) == expected else [f"{path}: its SHA-256 is not that of the manifest"]


def _sizes(entry: DatasetEntry, manifest: Manifest) -> dict[str, int]:
    """Elements of each array, in the order in which they are read."""
    sizes = {"indptr": entry.n_cells + 1, "split": entry.n_cells, "tokens": entry.n_tokens}
    if manifest.values:
        sizes["values"] = entry.n_tokens
    if entry.cell_hash is not None:
        sizes["cell_hash"] = entry.n_cells
    return sizes


def _check_dataset(store: Location, entry: DatasetEntry, manifest: Manifest, progress: Any) -> list[str]:
    problems: list[str] = []
    hashes: dict[str, str] = {}
    checks: dict[str, Callable[[], _Check]] = {
        "indptr": lambda: _Indptr(entry, manifest.top_k),
        "split": lambda: _Split(entry),
        "tokens": lambda: _Tokens(manifest.n_genes),
        "values": lambda: _Values(open_array(store, entry.name, "indptr") if hashes.get("indptr") else None),
        "cell_hash": _Anything,
    }
    for name, size in _sizes(entry, manifest).items():
        in_array, digest = _check_array(store, entry.name, name, size, checks[name], progress)
        problems += in_array
        hashes[name] = "" if in_array else digest
    if not problems and entry.content_hash != content_hash(
        hashes["tokens"], hashes["indptr"], hashes["split"], hashes.get("values")
    ):
        problems.append(f"{store / entry.name}: the content is not what was written: its SHA-256 differs")
    if hashes.get("cell_hash") and hashes["cell_hash"] != entry.cell_hash:
        problems.append(f"{store / entry.name / 'cell_hash'}: is not what was written: its SHA-256 differs")
    return problems


def _check_array(
    store: Location, dataset: str, name: str, size: int, make_check: "Callable[[], _Check]", progress: Any
) -> tuple[list[str], str]:
    """Problems of an array, and its SHA-256 (hex)."""
    folder = store / dataset / name
    try:
        array = open_array(store, dataset, name)
    except DataError as error:
        return [str(error)], ""
    if array.size != size:
        return [f"{folder}: has {array.size:,} elements, the manifest says {size:,}"], ""
    problems: list[str] = []
    digest, check = hashlib.sha256(), make_check()
    for start, values in _read_shards(array, problems):
        digest.update(np.ascontiguousarray(values).data)
        if wrong := check.look(start, values):
            problems.append(f"{folder}: {wrong}")
        progress.update(values.nbytes)
    # If a part could not be read, totals mean nothing.
    if not problems and (wrong := check.end()):
        problems.append(f"{folder}: {wrong}")
    return problems, digest.hexdigest()


class _Check(Protocol):
    """A check of the elements of an array, shard by shard."""

    def look(self, start: int, values: npt.NDArray[Any]) -> str | None:
        """Say what is wrong with elements [start, start + len(values)), or return None."""

    def end(self) -> str | None:
        """Say what is wrong with the whole array, or return None."""


class _Anything:
    """Accept all elements: only their SHA-256 tells whether they are right."""

    def look(self, start: int, values: npt.NDArray[Any]) -> str | None:
        return None

    def end(self) -> str | None:
        return None


class _Indptr:
    """Check that indptr runs from 0 to the number of tokens, and that each cell has 1 to `top_k` of them.

    Shards that could not be read are skipped.
    """

    def __init__(self, entry: DatasetEntry, top_k: int) -> None:
        self._n_tokens, self._top_k = entry.n_tokens, top_k
        self._stop, self._last = 0, 0

    def look(self, start: int, values: npt.NDArray[Any]) -> str | None:
        # The first shard, and one after a shard that could not be read, have no element before them to compare with.
        follows = start > 0 and start == self._stop
        before = self._last
        self._stop, self._last = start + len(values), int(values[-1])
        if start == 0 and values[0] != 0:
            return f"begins at {values[0]:,}, not at 0"
        lengths = np.diff(values, prepend=before)[0 if follows else 1 :]
        if not len(lengths) or (lengths.min() > 0 and lengths.max() <= self._top_k):
            return None
        cell = int(np.argmax((lengths <= 0) | (lengths > self._top_k)))
        return f"cell {cell + start - follows:,} has {lengths[cell]:,} tokens: expected 1 to {self._top_k:,}"

    def end(self) -> str | None:
        return None if self._last == self._n_tokens else f"ends at {self._last:,}, not at the {self._n_tokens:,} tokens"


class _Split:
    """Check that each split has as many cells as the manifest says."""

    def __init__(self, entry: DatasetEntry) -> None:
        self._expected = {TRAIN: entry.n_train, VALIDATION: entry.n_validation, TEST: entry.n_test}
        self._counts = np.zeros(256, np.int64)

    def look(self, start: int, values: npt.NDArray[Any]) -> str | None:
        self._counts += np.bincount(values, minlength=256)
        return None

    def end(self) -> str | None:
        counted = {split: int(self._counts[split]) for split in self._expected}
        return None if counted == self._expected else "its splits are not those of the manifest"


class _Tokens:
    """Check that every token is a gene of the vocabulary."""

    def __init__(self, n_genes: int) -> None:
        self._n_genes = n_genes

    def look(self, start: int, values: npt.NDArray[Any]) -> str | None:
        if values.min() >= FIRST_GENE and values.max() < self._n_genes + FIRST_GENE:
            return None
        return f"a token from {start:,} on is outside the vocabulary"

    def end(self) -> str | None:
        return None


class _Values:
    """Check that values are above zero, and that they do not rise within a cell.

    Without an intact `indptr` the bounds of cells are unknown, and the second check is skipped.
    """

    def __init__(self, indptr: StoredArray | None) -> None:
        self._starts = None if indptr is None else _Starts(indptr)
        self._stop, self._last = 0, np.float32(np.inf)

    def look(self, start: int, values: npt.NDArray[Any]) -> str | None:
        good = (values > 0) & (values < np.inf)
        if not good.all():
            index = int(np.argmin(good))
            return f"element {start + index:,} is {values[index]:g}: expected a number above zero"
        before = self._last if start == self._stop else np.float32(np.inf)
        self._stop, self._last = start + len(values), values[-1]
        if self._starts is None:
            return None
        rises = np.diff(values, prepend=before) > 0
        rises[self._starts.within(start, self._stop) - start] = False
        return f"element {start + int(np.argmax(rises)):,} is above the one before in its cell" if rises.any() else None

    def end(self) -> str | None:
        return None


class _Starts:
    """The first elements of cells, queried in ascending order."""

    def __init__(self, indptr: StoredArray) -> None:
        self._indptr = indptr
        self._next = 0
        self._pending = np.zeros(0, np.int64)

    def within(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The first elements of the cells that begin in [start, stop)."""
        while self._next < self._indptr.size and (not len(self._pending) or self._pending[-1] < stop):
            last = min(self._next + self._indptr.shard, self._indptr.size)
            self._pending = np.concatenate([self._pending, self._indptr.read(self._next, last)])
            self._next = last
        low, high = np.searchsorted(self._pending, [start, stop])
        starts, self._pending = self._pending[low:high], self._pending[high:]
        return starts


@dataclass(frozen=True)
class _Shard:
    """A file of an array that is being read: elements [start, stop)."""

    array: StoredArray
    start: int
    stop: int
    wait: Callable[[], npt.NDArray[Any]]

    @property
    def file(self) -> Location:
        return self.array.path / "c" / str(self.start // self.array.shard)

    def damage(self, error: DataError) -> list[str]:
        """One line for each chunk that cannot be read, once reading the whole shard has failed with `error`."""
        chunk = self.array.chunk
        firsts = range(self.start, self.stop, chunk)
        waits = [self.array.begin(first, min(first + chunk, self.stop), retry=False) for first in firsts]
        damaged = []
        for number, wait in enumerate(waits):
            try:
                wait()
            except DataError as chunk_error:
                damaged.append(f"{self.file}: chunk {number} is damaged ({_reason(chunk_error)})")
        return damaged if len(damaged) < len(firsts) else [f"{self.file}: cannot be read at all ({_reason(error)})"]


def _read_shards(array: StoredArray, problems: list[str]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield the first element and the values of each shard that can be read; add the others to `problems`.

    The next `_AHEAD` shards are read in the meantime.
    """
    starts = iter(range(0, array.size, array.shard))
    waiting: deque[_Shard] = deque()
    while True:
        for start in islice(starts, _AHEAD + 1 - len(waiting)):
            stop = min(start + array.shard, array.size)
            waiting.append(_Shard(array, start, stop, array.begin(start, stop)))
        if not waiting:
            return
        shard = waiting.popleft()
        if not shard.file.is_file():
            problems.append(f"{shard.file}: is missing (elements {shard.start:,} to {shard.stop:,})")
            continue
        try:
            values = shard.wait()
        except DataError as error:
            problems += shard.damage(error)
        else:
            yield shard.start, values


def _reason(error: DataError) -> str:
    """TensorStore's own message, without the advice to run `gm-train data verify`."""
    return first_line(error.__cause__ or error)

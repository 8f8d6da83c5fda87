"""Reading a whole store again to find every damaged file and chunk."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_shards.arrays import StoredArray, first_line, open_array
from data_shards.errors import DataError
from data_shards.manifest import TEST, TRAIN, VALIDATION, DatasetEntry, Manifest
from data_shards.output import hash_path
from data_shards.store import content_hash
from data_shards.tokenizer import Tokenizer
from data_shards.vocabulary import FIRST_GENE

#: Shards that are read while one is looked at; of tokens each is 32 MiB.
_AHEAD = 4


def find_damage(path: Path) -> list[str]:
    """One line for every file or chunk of a store that is not what was written; none if all is well.

    Raises:
        DataError: there is no store, or its manifest cannot be read.
    """
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
    with tqdm(desc=f"reading {path.name}", unit="B", unit_scale=True, disable=None) as progress:
        progress.total = sum(2 * entry.n_tokens + 9 * entry.n_cells for entry in manifest.datasets)
        for entry in manifest.datasets:
            problems += _check_file(path / entry.name / "obs.parquet", entry.obs_hash)
            problems += _check_dataset(path, entry, manifest, progress)
    return problems


def _check_file(path: Path, expected: str) -> list[str]:
    if not path.is_file():
        return [f"{path}: is missing"]
    return [] if hash_path(path) == expected else [f"{path}: its SHA-256 is not that of the manifest"]


def _check_dataset(store: Path, entry: DatasetEntry, manifest: Manifest, progress: Any) -> list[str]:
    sizes = {"tokens": entry.n_tokens, "indptr": entry.n_cells + 1, "split": entry.n_cells}
    problems: list[str] = []
    hashes = {}
    held = np.zeros(256, np.int64)
    last = 0
    for name, size in sizes.items():
        folder = store / entry.name / name
        found = len(problems)
        try:
            array = open_array(store, entry.name, name)
        except DataError as error:
            problems.append(str(error))
            continue
        if array.size != size:
            problems.append(f"{folder}: has {array.size:,} elements, the manifest says {size:,}")
            continue
        digest = hashlib.sha256()
        for start, values in _read_shards(array, problems):
            digest.update(np.ascontiguousarray(values).data)
            progress.update(values.nbytes)
            if name == "tokens" and len(values):
                if values.min() < FIRST_GENE or values.max() >= manifest.n_genes + FIRST_GENE:
                    problems.append(f"{folder}: a token from {start:,} on is outside the vocabulary")
            elif name == "indptr":
                if values[0] < last or np.any(np.diff(values) < 0):
                    problems.append(f"{folder}: decreases after element {start:,}")
                last = int(values[-1])
            else:
                held += np.bincount(values, minlength=256)
        hashes[name] = digest.hexdigest()
        if name == "indptr" and len(problems) == found and last != entry.n_tokens:
            problems.append(f"{folder}: ends at {last:,}, not at the {entry.n_tokens:,} tokens")
        if name == "split" and len(problems) == found:
            counted = [int(held[split]) for split in (TRAIN, VALIDATION, TEST)]
            if counted != [entry.n_train, entry.n_validation, entry.n_test]:
                problems.append(f"{folder}: its splits are not those of the manifest")
    if not problems and content_hash(hashes["tokens"], hashes["indptr"], hashes["split"]) != entry.content_hash:
        problems.append(f"{store / entry.name}: the content is not what was written: its SHA-256 differs")
    return problems


@dataclass(frozen=True)
class _Shard:
    """A file of an array that is being read: elements [start, stop)."""

    array: StoredArray
    start: int
    stop: int
    wait: Callable[[], npt.NDArray[Any]]

    @property
    def file(self) -> Path:
        return self.array.path / "c" / str(self.start // self.array.shard)

    def damage(self, error: DataError) -> list[str]:
        """Each chunk that cannot be read, after the whole could not."""
        chunk = self.array.chunk
        firsts = range(self.start, self.stop, chunk)
        waits = [self.array.begin(first, min(first + chunk, self.stop)) for first in firsts]
        damaged = []
        for number, wait in enumerate(waits):
            try:
                wait()
            except DataError as of_chunk:
                damaged.append(f"{self.file}: chunk {number} is damaged ({_reason(of_chunk)})")
        return damaged if len(damaged) < len(firsts) else [f"{self.file}: cannot be read at all ({_reason(error)})"]


def _read_shards(array: StoredArray, problems: list[str]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The shards that can be read, with their first elements; some are read ahead of time."""
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
    """What TensorStore said, without the advice to call this program."""
    return first_line(error.__cause__ or error)

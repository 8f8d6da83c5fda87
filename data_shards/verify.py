"""Reading a whole store again to find every damaged file and chunk."""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_shards.arrays import StoredArray, open_array
from data_shards.errors import DataError
from data_shards.manifest import TEST, TRAIN, VALIDATION, DatasetEntry, Manifest
from data_shards.place import Place, first_line, hash_place, place_of
from data_shards.store import content_hash
from data_shards.tokenizer import Tokenizer
from data_shards.vocabulary import FIRST_GENE


def find_damage(store: str | Place) -> list[str]:
    """One line for every file or chunk of a store that is not what was written; none if all is well.

    Raises:
        DataError: there is no store, or its manifest cannot be read.
    """
    path = place_of(store)
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
    for entry in manifest.datasets:
        problems += _check_file(path / entry.name / "obs.parquet", entry.obs_hash)
        problems += _check_dataset(path, entry, manifest)
    return problems


def _check_file(path: Place, expected: str) -> list[str]:
    if not path.is_file():
        return [f"{path}: is missing"]
    return [] if hash_place(path) == expected else [f"{path}: its SHA-256 is not that of the manifest"]


def _check_dataset(store: Place, entry: DatasetEntry, manifest: Manifest) -> list[str]:
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
            digest.update(np.ascontiguousarray(values).tobytes())
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


def _read_shards(array: StoredArray, problems: list[str]) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
    """Shard after shard; of one that cannot be read, each damaged chunk is named."""
    chunk, shard = array.chunk, array.shard
    what = f"reading {array.path.parent.name}/{array.path.name}"
    for start in tqdm(range(0, array.size, shard), desc=what, disable=None):
        stop = min(start + shard, array.size)
        file = array.path / "c" / str(start // shard)
        if not file.is_file():
            problems.append(f"{file}: is missing (elements {start:,} to {stop:,})")
            continue
        try:
            yield start, array.read(start, stop)
        except DataError as error:
            damaged = []
            for first in range(start, stop, chunk):
                try:
                    array.read(first, min(first + chunk, stop), retry=False)
                except DataError as of_chunk:
                    damaged.append((first, _reason(of_chunk)))
            if len(damaged) * chunk >= stop - start:
                problems.append(f"{file}: the whole shard cannot be read ({_reason(error)})")
            else:
                problems += [
                    f"{file}: chunk {(first - start) // chunk} is damaged ({of_chunk})" for first, of_chunk in damaged
                ]


def _reason(error: DataError) -> str:
    """What TensorStore said, without the advice to call this program."""
    return first_line(error.__cause__ or error)

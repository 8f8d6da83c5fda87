"""Find the cells of a file among known cells: by the SHA-256 of the file, and cell by cell by hashes of their counts.

The hashes of the file's cells are in memory, about 130 bytes a cell while they are compared; known ones are streamed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError
from data_shards.files.fingerprint import Fingerprint, read_fingerprints
from data_shards.files.location import Location, location_of
from data_shards.hashing import U64
from data_shards.inspect.file_cells import FileCells, hash_file_cells
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TRAIN, DatasetEntry, Manifest
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Workers

I64 = npt.NDArray[np.int64]

#: Where a cell was found, beside the splits: in the training split of a data set that a run left out of its training.
LEFT_OUT = 3
N_PLACES = 4
#: Cells with fewer tokens (genes of the vocabulary) than this may have the same counts by chance. Of gut cells thinned
#: to a few molecules (some 40,000 with each number of genes), 78 % with one gene equalled another cell, 9 % with two,
#: 0.1 % with three, none with five or more.
FEW_GENES = 20
#: In a match, the place stands in the bits above the number of the cell. So the smallest match is one in training.
_PLACE_SHIFT = np.int64(56)
_PREFIX_BITS = 24
_PREFIX_SHIFT = np.uint64(64 - _PREFIX_BITS)
_NO_MATCH = np.iinfo(np.int64).max


@dataclass(frozen=True)
class KnownDataset:
    """A data set whose cells are searched.

    Attributes:
        entry: its entry in the manifest.
        arrays: the store, or copy of its hashes, that holds `cell_hash` and `split`; None if only the file is known.
        reason: without `arrays`: why, and what to do.
        trained: False if a run left the data set out of its training.
    """

    entry: DatasetEntry
    arrays: Location | None
    reason: str = ""
    trained: bool = True


@dataclass(frozen=True, eq=False)
class KnownCells:
    """The cells of a store, or those that a checkpoint was trained on.

    Attributes:
        name: the store or checkpoint, for messages.
        tokenizer: resolves the genes of a file.
        datasets: the data sets, in the order of the store.
    """

    name: str
    tokenizer: Tokenizer
    datasets: tuple[KnownDataset, ...]

    @cached_property
    def starts(self) -> I64:
        """int64 (n_datasets,): number of the cells of the data sets before each one."""
        n_cells = np.array([one.entry.n_cells for one in self.datasets], np.int64)
        return np.cumsum(n_cells) - n_cells

    @classmethod
    def of_store(cls, store: str | Location) -> "KnownCells":
        """The cells of a store.

        Raises:
            DataError: there is no store, or it is damaged.
        """
        path = location_of(store)
        manifest = Manifest.load(path)
        known = tuple(
            KnownDataset(entry, None if entry.cell_hash is None else path, no_hashes(entry))
            for entry in manifest.datasets
        )
        return cls(str(path), Tokenizer.load(path), known)


def no_hashes(entry: DatasetEntry) -> str:
    """Why a data set has no hashes of cells, and what to do; "" if it has them."""
    if entry.cell_hash is not None:
        return ""
    if entry.imported is not None:
        return "it was imported as ranks, without counts, so that only its file can be compared"
    return (
        "it was made by a version that kept no hashes of cells: make the store again from the same files with "
        "`gm-train data shards`; it gets the same hash, so that runs continue with it"
    )


@dataclass(frozen=True, eq=False)
class Found:
    """What was found.

    Attributes:
        file: the file, with its SHA-256.
        same_file: data sets that were made from this very file.
        cells: the cells of the file; None if only files could be compared.
        by_dataset: for each data set int64 (4,): cells of the file found in its training, validation and test splits,
            and in its training split although it was left out. A cell that is in several counts in the first of these.
        data_set: int32 (n_cells,), number of the data set in which each cell was found, training first; or -1.
        row: int64 (n_cells,), its row there, or -1.
        place: int8 (n_cells,), its split there, or `LEFT_OUT`; or -1.
    """

    file: Fingerprint
    same_file: tuple[KnownDataset, ...]
    cells: FileCells | None
    by_dataset: I64
    data_set: npt.NDArray[np.int32]
    row: I64
    place: npt.NDArray[np.int8]

    @property
    def by_place(self) -> list[int]:
        """Number of cells found in each place."""
        return [int((self.place == place).sum()) for place in range(N_PLACES)]


def _source_hashes(entry: DatasetEntry) -> set[str]:
    """SHA-256 of the files of a data set; a corpus may have several."""
    return {entry.source_hash, *(one["hash"] for one in (entry.imported or {}).get("files", []))}


def look_up(path: Path, known: KnownCells, options: CountOptions | None = None, min_mapped: float = 0.5) -> Found:
    """Find a file and its cells among known cells.

    Args:
        path: the file.
        known: what to search.
        options: where the counts of the file are.
        min_mapped: share of its genes (0 to 1) that must map to Ensembl ids, if the vocabulary has such ids.

    Raises:
        DataError: the file cannot be used or is of another species, or the known cells cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file: give a count file (.h5ad, or an AnnData-Zarr folder)")
    (file,) = read_fingerprints([path], Workers())
    same_file = tuple(one for one in known.datasets if file.sha256 in _source_hashes(one.entry))
    searched = any(one.arrays is not None for one in known.datasets)
    # The file of an imported corpus holds no counts.
    if not searched or any(one.entry.imported is not None for one in same_file):
        none_found = np.zeros((len(known.datasets), N_PLACES), np.int64)
        return Found(file, same_file, None, none_found, *_split(np.zeros(0, np.int64), known))
    with open_counts(path, options) as counts:
        cells = hash_file_cells(counts, known.tokenizer, known.name, min_mapped)
    file.require_unchanged()
    matches, by_dataset = _search(cells, known)
    return Found(file, same_file, cells, by_dataset, *_split(matches, known))


def _search(cells: FileCells, known: KnownCells) -> tuple[I64, I64]:
    """Find the cells of a file in all data sets.

    Returns:
        int64 (n_cells,): the smallest match of each cell, with its number among the cells of all data sets, or
        `_NO_MATCH`; and `Found.by_dataset`.
    """
    unique, cell_of = np.unique(cells.hashes[cells.n_tokens > 0], return_inverse=True)
    copies = np.bincount(cell_of, minlength=len(unique))
    prefixes = np.zeros(1 << _PREFIX_BITS, np.bool_)
    prefixes[unique >> _PREFIX_SHIFT] = True
    by_dataset = np.zeros((len(known.datasets), N_PLACES), np.int64)
    best = np.full(len(unique), _NO_MATCH)
    n_searched = sum(one.entry.n_cells for one in known.datasets if one.arrays is not None)
    with Progress(total=n_searched, desc="comparing", unit=" cells") as progress:
        for number, (one, first) in enumerate(zip(known.datasets, known.starts, strict=True)):
            best_here = np.full(len(unique), _NO_MATCH)
            for at, match in _matches(one, unique, prefixes, progress):
                np.minimum.at(best_here, at, match + first)
            found = best_here != _NO_MATCH
            by_dataset[number] = np.bincount(best_here[found] >> _PLACE_SHIFT, copies[found], N_PLACES)
            np.minimum(best, best_here, out=best)
    matches = np.full(cells.n_cells, _NO_MATCH)
    matches[cells.n_tokens > 0] = best[cell_of]
    return matches, by_dataset


def _split(matches: I64, known: KnownCells) -> tuple[npt.NDArray[np.int32], I64, npt.NDArray[np.int8]]:
    """Split the matches of `_search` into data set, row and place: the last three attributes of `Found`."""
    missing = matches == _NO_MATCH
    cell = matches & ((np.int64(1) << _PLACE_SHIFT) - 1)
    data_set = np.searchsorted(known.starts, cell, side="right") - 1
    row = cell - known.starts[data_set]
    return (
        np.where(missing, -1, data_set).astype(np.int32),
        np.where(missing, -1, row),
        np.where(missing, -1, matches >> _PLACE_SHIFT).astype(np.int8),
    )


def _matches(
    one: KnownDataset, unique: U64, prefixes: npt.NDArray[np.bool_], progress: Progress
) -> Iterator[tuple[I64, I64]]:
    """Find hashes in a data set.

    Args:
        one: the data set.
        unique: the hashes, sorted.
        prefixes: which first 24 bits the hashes have. Most of the data set's are dropped by this, far faster than by a
            search.
        progress: advanced by the cells of the data set.

    Yields:
        Indices in `unique`, int64 (n,), and their matches, int64 (n,): place and row of the cell.
    """
    if one.arrays is None or not len(unique):
        return
    hashes, splits = (open_array(one.arrays, one.entry.name, name) for name in ("cell_hash", "split"))
    for start in range(0, hashes.size, hashes.shard):
        stop = min(start + hashes.shard, hashes.size)
        stored = hashes.read(start, stop)
        rows = np.flatnonzero(prefixes[stored >> _PREFIX_SHIFT])
        stored = stored[rows]
        at = np.minimum(np.searchsorted(unique, stored), len(unique) - 1)
        same = unique[at] == stored
        at, rows = at[same], rows[same]
        if len(rows):
            places = splits.read(start, stop)[rows].astype(np.int64)
            if not one.trained:
                places[places == TRAIN] = LEFT_OUT
            yield at, (places << _PLACE_SHIFT) + start + rows
        progress.update(stop - start)

"""Which cells are held out: whole donors, whole data sets or, only when asked for, single cells.

Cells of one donor resemble each other beyond their type, so a split by cell flatters the scores: it is labelled.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from data_shards.errors import DataError, OptionError
from data_shards.hashing import fold, hash_string, mix64, uniform
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TEST, TRAIN, VALIDATION, Manifest
from data_shards.store.obs_parquet import SOURCE_ROW, canonical_names, read_column

WAYS = ("auto", "donor", "dataset", "cell", "none")
DONOR_COLUMNS = ("donor_id", "donor", "patient", "individual")
_PURPOSE = hash_string("split")


@dataclass(frozen=True)
class SplitOptions:
    """How cells are held out.

    Attributes:
        by: "auto" (donors where a data set names two or more; else nothing is held out), "donor", "dataset", "cell" or
            "none".
        donor_key: column of obs; none takes the first of the usual ones.
        validation, test: share of the cells, about.
        seed: of the drawing.
    """

    by: str = "auto"
    donor_key: str | None = None
    validation: float = 0.1
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise OptionError(f"--split-by {self.by!r}: expected one of {', '.join(WAYS)}")
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise OptionError(
                f"--validation {self.validation:g} and --test {self.test:g} leave no cells to train on: "
                "both are shares, and their sum is below 1"
            )

    @property
    def held_out(self) -> tuple[str, ...]:
        """The names of the splits that some cells are held out for."""
        return tuple(name for name, share in (("validation", self.validation), ("test", self.test)) if share > 0)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def find_donor_key(self, name: str, columns: Sequence[str]) -> str | None:
        """The column with the donors of a data set, None if there is none or cells are not split by donor.

        Raises:
            DataError: the column asked for, or any with `by="donor"`, is not there.
        """
        if self.by not in ("auto", "donor"):
            return None
        if self.donor_key is not None:
            if self.donor_key not in columns:
                raise DataError(
                    f"{name}: no column {self.donor_key!r} in obs: --donor-key can be one of {list(columns)}"
                )
            return self.donor_key
        found = usual_donor_column(columns)
        if found is None and self.by == "donor":
            raise DataError(f"{name}: no donor column in obs: name it with --donor-key, or use --split-by dataset")
        return found


def assign_donors(cells: Counter[str], options: SplitOptions, assigned: Mapping[str, int]) -> dict[str, int]:
    """Split of each donor of one data set, or of each data set of a store.

    Donors are taken in the order of a hash, and go to validation, then to test, where they bring its share of cells
    nearer. If none does, the smallest donor is held out. One that is not assigned yet is always left to be trained on.

    Args:
        cells: cells of each donor; cells of unknown donor ("") are trained on.
        options: shares and seed.
        assigned: donors that another data set has, with the split they have there.
    """
    found = {donor: assigned[donor] for donor in cells if donor in assigned}
    free = sorted(
        (donor for donor in cells if donor and donor not in assigned),
        key=lambda donor: (fold(_PURPOSE, options.seed, hash_string(donor)), donor),
    )
    total = cells.total()
    wanted = [(split, share) for split, share in ((VALIDATION, options.validation), (TEST, options.test)) if share > 0]
    for number, (split, share) in enumerate(wanted):
        held = sum(cells[donor] for donor, where in found.items() if where == split)
        spare = len(wanted) - number  # a donor for training and for each split that is still to come
        for donor in list(free):
            if len(free) > spare and abs(held + cells[donor] - share * total) < abs(held - share * total):
                found[donor] = split
                held += cells[donor]
                free.remove(donor)
        if held == 0 and len(free) > 1:
            smallest = min(free, key=lambda donor: (cells[donor], free.index(donor)))
            found[smallest] = split
            free.remove(smallest)
    return {**dict.fromkeys(cells, TRAIN), **found}


def split_by_cell(name: str, rows: npt.NDArray[np.int64], options: SplitOptions) -> npt.NDArray[np.uint8]:
    """Split of single cells, from a hash of data set and row in its file: uint8 (n,)."""
    key = np.uint64(fold(_PURPOSE, options.seed, hash_string(name)))
    drawn = uniform(mix64(rows.astype(np.uint64) ^ key))
    split = np.full(len(rows), TRAIN, np.uint8)
    split[drawn < options.test + options.validation] = VALIDATION
    split[drawn < options.test] = TEST
    return split


@dataclass(frozen=True)
class Annotated:
    """Cells whose splits are to be drawn: a data set's name, its `obs.parquet`, and its column of donors, if any."""

    name: str
    obs_path: Path
    donor_key: str | None


@dataclass(frozen=True)
class Earlier:
    """What the data sets that a store has already fix for those that are added.

    Attributes:
        donors: split of each of their donors.
        datasets: split of each data set; one that is split itself counts as trained on.
        cells: cells of each data set.
    """

    donors: Mapping[str, int] = field(default_factory=dict)
    datasets: Mapping[str, int] = field(default_factory=dict)
    cells: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """How the cells of a data set were split.

    Attributes:
        by: "donor", "dataset", "cell" or "none".
        donor_key: column with the donors, if by donor.
        cells: cells of each split.
        donors: cells of each donor, "" where unknown; empty if not by donor.
        asked: how splits were asked for.
    """

    by: str
    donor_key: str | None
    cells: Counter[int]
    donors: Counter[str]
    asked: str

    def __str__(self) -> str:
        text = ", ".join(
            f"{self.cells[split]:,} {word}"
            for split, word in ((TRAIN, "training"), (VALIDATION, "validation"), (TEST, "test"))
        )
        if self.by == "donor":
            known = len(self.donors) - ("" in self.donors)
            unknown = f"; the {self.donors['']:,} cells of unknown donor are trained on" if self.donors[""] else ""
            return f"{text} cells, by {known:,} whole donors ({self.donor_key}){unknown}"
        if self.by == "dataset":
            return f"{text} cells, by whole data sets"
        if self.by == "cell":
            return f"{text} cells, by single cells: weaker than by donor, since cells of one donor resemble each other"
        if self.asked == "auto":
            return (
                f"{text} cells: obs names no two donors, so that all are trained on: name its column with --donor-key, "
                "or hold out with --split-by dataset, or cell, which is weaker"
            )
        return f"{text} cells: nothing is held out"


def draw_splits(
    datasets: Sequence[Annotated],
    options: SplitOptions,
    write: Callable[[str, npt.NDArray[np.uint8]], None],
    earlier: Earlier | None = None,
) -> list[Drawn]:
    """Draw the splits of all data sets; a donor that several of them have is in the same split in each.

    Args:
        datasets: data sets, in order.
        options: how to split.
        write: takes the name of a data set and the splits of its next cells.
        earlier: what the store has already, if they are added to one.

    Raises:
        DataError: whole donors or data sets were asked for, and there are too few to hold any out.
    """
    earlier = earlier or Earlier()
    donors = [_count_donors(dataset) for dataset in datasets]
    of_donor = dict(earlier.donors)
    n_cells = {dataset.name: _count_cells(dataset.obs_path) for dataset in datasets}
    of_dataset = assign_donors(Counter({**earlier.cells, **n_cells}), options, earlier.datasets)
    drawn = []
    for number, dataset in enumerate(datasets):
        own = {donor for donor in donors[number] if donor}
        others = {donor for other, cells in enumerate(donors) if other != number for donor in cells}
        by = options.by
        if by == "auto":
            by = "donor" if len(own) > 1 or own & (others | earlier.donors.keys()) else "none"
        held = np.zeros(3, np.int64)
        if by == "donor":
            of_donor |= assign_donors(donors[number], options, of_donor)
        donor_key = dataset.donor_key if by == "donor" else None
        for column in read_column(dataset.obs_path, donor_key or SOURCE_ROW):
            if by == "donor":
                codes, names = donor_codes(column)
                split = np.array([of_donor[donor] for donor in names], np.uint8)[codes]
            elif by == "cell":
                split = split_by_cell(dataset.name, column.to_numpy(np.int64), options)
            else:
                split = np.full(len(column), of_dataset[dataset.name] if by == "dataset" else TRAIN, np.uint8)
            write(dataset.name, split)
            held += np.bincount(split, minlength=3)
        found = donors[number] if by == "donor" else Counter()
        drawn.append(Drawn(by, donor_key, Counter(dict(enumerate(held.tolist()))), found, options.by))
    held_out = sum((one.cells for one in drawn), Counter[int]())
    for where, share in ((VALIDATION, options.validation), (TEST, options.test)):
        # What is added may have one donor, or be one data set.
        if options.by in ("donor", "dataset") and share > 0 and not held_out[where] and not earlier.cells:
            if options.by == "donor":
                raise _too_few(
                    f"{len({donor for cells in donors for donor in cells if donor}):,} known donors", options
                )
            raise _too_few(f"{len(datasets):,} data sets", options)
    return drawn


def refuse_too_few(donors: Sequence[Collection[str]], options: SplitOptions, earlier: Earlier) -> None:
    """Raise DataError where whole donors or data sets are asked for, and there cannot be enough.

    It is known before cells are ranked; `draw_splits` knows how many cells each has, and may refuse still.

    Args:
        donors: of each data set that is made, in order; empty where cells are not split by whole donors.
        options: how to split.
        earlier: what the store has already: what is added to one need not be enough by itself.
    """
    n_held_out = len(options.held_out)
    if earlier.cells or not n_held_out:
        return
    if options.by == "dataset" and len(donors) <= n_held_out:
        raise _too_few(f"{len(donors):,} data sets", options)
    if options.by != "donor":
        return
    known: set[str] = set()
    most = 0
    for names in donors:
        most = max(most, len(set(names) - known))
        known.update(names)
    if len(known) <= n_held_out:
        raise _too_few(f"{len(known):,} known donors", options)
    if most < 2:
        raise DataError(
            f"{len(known):,} known donors, but no data set has two of its own, one to train on and one to hold out: "
            "use --split-by dataset, or none to hold nothing out"
        )


def _too_few(what: str, options: SplitOptions) -> DataError:
    """That whole ones were asked for where there are none to hold out."""
    other = {"donor": "cell", "dataset": "donor"}[options.by]
    return DataError(
        f"{what}: too few to train on some and hold out others for {' and '.join(options.held_out)}: use --split-by "
        f"{other}, or none to hold nothing out"
    )


def earlier_splits(store: Path, manifest: Manifest, say: Callable[[str], None]) -> Earlier:
    """The splits that a store's data sets fix; `say` takes a line of each whose donors are not known.

    Raises:
        DataError: the store is damaged.
    """
    donors: dict[str, int] = {}
    datasets, cells = {}, {}
    for entry in manifest.datasets:
        cells[entry.name] = entry.n_cells
        datasets[entry.name] = {entry.n_validation: VALIDATION, entry.n_test: TEST}.get(entry.n_cells, TRAIN)
        path = store / entry.name / "obs.parquet"
        columns = pq.read_schema(path).names
        key = entry.donor_key or entry.splits["donor_key"] or usual_donor_column(columns)
        if key is None:
            continue
        if key not in columns:
            say(
                f"{entry.name}: its donors are not known, since column {key!r} of obs was not kept: "
                "cells that are added may be of them"
            )
            continue
        split = open_array(store, entry.name, "split")
        start = 0
        for column in read_column(path, key):
            codes, names = donor_codes(column)
            found = split.read(start, start + len(column))
            start += len(column)
            # A donor with cells in several splits, as after a split by cell, has been trained on.
            for where in (TEST, VALIDATION, TRAIN):
                for code in np.unique(codes[found == where]):
                    donors[names[code]] = min(where, donors.get(names[code], where))
    donors.pop("", None)
    return Earlier(donors, datasets, cells)


def usual_donor_column(columns: Sequence[str]) -> str | None:
    """The first of the usual columns with donors that is there."""
    return next((column for column in DONOR_COLUMNS if column in columns), None)


def _count_cells(obs_path: Path) -> int:
    return int(pq.read_metadata(obs_path).num_rows)


def _count_donors(dataset: Annotated) -> Counter[str]:
    cells: Counter[str] = Counter()
    if dataset.donor_key is not None:
        for column in read_column(dataset.obs_path, dataset.donor_key):
            codes, names = donor_codes(column)
            for name, n_cells in zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True):
                cells[name] += n_cells
    return +cells


def donor_codes(column: pd.Series) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The donors of a column as text, "" where unknown: the number of each row's, int64 (n,), and their names.

    A name can stand more than once, as of 3 and 3.0.
    """
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return np.asarray(codes, np.int64), [name or "" for name in canonical_names(pd.Series(values))]

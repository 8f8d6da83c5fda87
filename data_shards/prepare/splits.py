"""Choose which cells are held out: whole donors, whole data sets or, only on request, single cells.

Cells of one donor resemble each other beyond their type. So a split by cell gives scores that are too good, and the
report says so.
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
        by: "auto" (by donor if a data set names two or more or shares one with another data set; otherwise nothing is
            held out), "donor", "dataset", "cell" or "none".
        donor_key: column of obs; None takes the first of the usual ones.
        validation, test: approximate shares of the cells.
        seed: seed of the draw.
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
                "both are shares, and their sum must be below 1"
            )

    @property
    def held_out(self) -> tuple[str, ...]:
        """The names of the splits that some cells are held out for."""
        return tuple(name for name, share in (("validation", self.validation), ("test", self.test)) if share > 0)

    def record(self) -> dict[str, Any]:
        """The options as JSON."""
        return asdict(self)

    def find_donor_key(self, name: str, columns: Sequence[str]) -> str | None:
        """The column with the donors of a data set; None if there is none or cells are not split by donor.

        Raises:
            DataError: `donor_key` is not in `columns`, or `by` is "donor" and there is no donor column.
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
    """Assign a split to each donor of one data set, or to each data set of a store.

    Donors are taken in the order of a hash, first for validation, then for test. A donor is taken if that brings the
    split's share of cells closer to the wanted one. If none is taken, the smallest donor is held out. At least one
    donor without an assigned split always remains for training.

    Args:
        cells: number of cells of each donor; cells of unknown donor ("") are used for training.
        options: shares and seed.
        assigned: split of each donor that another data set has already.

    Returns:
        Split of each donor in `cells`.
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
        spare = len(wanted) - number  # keep a donor for training and for each later split
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
    """Assign a split to single cells, by a hash of the data set's name and the cell's row.

    Args:
        name: the data set.
        rows: int64 (n,), rows of the cells in the source file.
        options: shares and seed.

    Returns:
        uint8 (n,).
    """
    key = np.uint64(fold(_PURPOSE, options.seed, hash_string(name)))
    drawn = uniform(mix64(rows.astype(np.uint64) ^ key))
    split = np.full(len(rows), TRAIN, np.uint8)
    split[drawn < options.test + options.validation] = VALIDATION
    split[drawn < options.test] = TEST
    return split


@dataclass(frozen=True)
class Annotated:
    """A data set whose splits are drawn.

    Attributes:
        name: its name.
        obs_path: its `obs.parquet`.
        donor_key: its column of donors, or None.
    """

    name: str
    obs_path: Path
    donor_key: str | None


@dataclass(frozen=True)
class Earlier:
    """Splits that a store's present data sets fix for added ones.

    Attributes:
        donors: split of each of their donors.
        datasets: split of each data set; TRAIN if its cells are in several splits.
        cells: number of cells of each data set.
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
        cells: number of cells of each split.
        donors: number of cells of each donor, "" where unknown; empty if not by donor.
        asked: `SplitOptions.by` as requested.
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
            unknown = f"; the {self.donors['']:,} cells of unknown donor are training cells" if self.donors[""] else ""
            return f"{text} cells, by {known:,} whole donors ({self.donor_key}){unknown}"
        if self.by == "dataset":
            return f"{text} cells, by whole data sets"
        if self.by == "cell":
            return f"{text} cells, by single cells: weaker than by donor, since cells of one donor resemble each other"
        if self.asked == "auto":
            return (
                f"{text} cells: obs does not name two donors, so all are training cells: name the column with "
                "--donor-key, or use --split-by dataset, or cell, which is weaker"
            )
        return f"{text} cells: nothing is held out"


def draw_splits(
    datasets: Sequence[Annotated],
    options: SplitOptions,
    write: Callable[[str, npt.NDArray[np.uint8]], None],
    earlier: Earlier | None = None,
) -> list[Drawn]:
    """Draw the splits of all data sets. A donor that several data sets share gets the same split in each.

    Args:
        datasets: data sets, in order.
        options: how to split.
        write: called with the name of a data set and the splits of its next cells, uint8.
        earlier: splits that the store's present data sets fix; None for a new store.

    Returns:
        How each data set was split, in order.

    Raises:
        DataError: `options.by` is "donor" or "dataset", and there are too few to hold any out.
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
        # Not for an --add: the added files may have one donor, or be one data set.
        if options.by in ("donor", "dataset") and share > 0 and not held_out[where] and not earlier.cells:
            if options.by == "donor":
                raise _too_few(
                    f"{len({donor for cells in donors for donor in cells if donor}):,} known donors", options
                )
            raise _too_few(f"{len(datasets):,} data sets", options)
    return drawn


def refuse_too_few(donors: Sequence[Collection[str]], options: SplitOptions, earlier: Earlier) -> None:
    """Raise DataError if whole donors or data sets are asked for, and there cannot be enough of them.

    This check runs before cells are ranked. `draw_splits`, which knows how many cells each has, may still raise.

    Args:
        donors: names of the donors of each new data set, in order; empty if cells are not split by donor.
        options: how to split.
        earlier: splits that the store's present data sets fix. If there are any, nothing is refused: the added
            data sets need not be enough by themselves.
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
    """The error for too few donors or data sets; it names the next finer way to split."""
    other = {"donor": "cell", "dataset": "donor"}[options.by]
    return DataError(
        f"{what}: too few to train on some and hold out others for {' and '.join(options.held_out)}: use --split-by "
        f"{other}, or none to hold nothing out"
    )


def earlier_splits(store: Path, manifest: Manifest, say: Callable[[str], None]) -> Earlier:
    """Read the splits that a store's data sets fix for added ones.

    Args:
        store: the store.
        manifest: its manifest.
        say: called with a line for each data set whose donors are not known.

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
                "added cells may come from the same donors"
            )
            continue
        split = open_array(store, entry.name, "split")
        start = 0
        for column in read_column(path, key):
            codes, names = donor_codes(column)
            splits = split.read(start, start + len(column))
            start += len(column)
            # A donor with cells in several splits, as after a split by cell, counts as trained on (TRAIN is lowest).
            for where in (TEST, VALIDATION, TRAIN):
                for code in np.unique(codes[splits == where]):
                    donors[names[code]] = min(where, donors.get(names[code], where))
    donors.pop("", None)
    return Earlier(donors, datasets, cells)


def usual_donor_column(columns: Sequence[str]) -> str | None:
    """The first usual donor column among `columns`, or None."""
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
    """Code the donors of a column.

    Returns:
        Code of each row, int64 (n,), and the name of each code, "" where unknown. A name can appear more than once,
        for example for 3 and 3.0.
    """
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return np.asarray(codes, np.int64), [name or "" for name in canonical_names(pd.Series(values))]

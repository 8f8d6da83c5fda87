"""Which cells are held out: whole donors where donors are known, else single cells.

Cells of one donor resemble each other beyond their type, so a split by cell flatters the scores: it is labelled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_shards.errors import DataError
from data_shards.hashing import fold, hash_string, mix64, uniform
from data_shards.manifest import TEST, TRAIN, VALIDATION
from data_shards.obs_file import SOURCE_ROW, canonical_names, read_column

DONOR_COLUMNS = ("donor_id", "donor", "patient", "individual")
_PURPOSE = hash_string("split")


@dataclass(frozen=True)
class SplitOptions:
    """How cells are held out.

    Attributes:
        by: "auto" (donors if there are two or more, else cells), "donor", "cell" or "none".
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
        if self.by not in ("auto", "donor", "cell", "none"):
            raise DataError(f"--split-by {self.by!r}: expected auto, donor, cell or none")
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise DataError(
                f"--validation {self.validation:g} and --test {self.test:g} leave no cells to train on: "
                "both are shares, and their sum is below 1"
            )

    def find_donor_key(self, name: str, columns: Sequence[str]) -> str | None:
        """The column with the donors of a data set, None to split by cell or not at all.

        Raises:
            DataError: the column asked for, or any with `by="donor"`, is not there.
        """
        if self.by in ("cell", "none"):
            return None
        if self.donor_key is not None:
            if self.donor_key not in columns:
                raise DataError(
                    f"{name}: no column {self.donor_key!r} in obs: --donor-key can be one of {list(columns)}"
                )
            return self.donor_key
        found = next((column for column in DONOR_COLUMNS if column in columns), None)
        if found is None and self.by == "donor":
            raise DataError(f"{name}: no donor column in obs: name it with --donor-key, or use --split-by cell")
        return found


def assign_donors(cells: Counter[str], options: SplitOptions, assigned: dict[str, int]) -> dict[str, int]:
    """Split of each donor of one data set.

    Donors are taken in the order of a hash, and go to validation, then to test, where they bring its share of cells
    nearer. If none does, the smallest donor is held out.

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
class Drawn:
    """How the cells of a data set were split.

    Attributes:
        by: "donor", "cell" or "none".
        donor_key: column with the donors, if by donor.
        cells: cells of each split.
        donors: cells of each donor, "" where unknown; empty if not by donor.
    """

    by: str
    donor_key: str | None
    cells: Counter[int]
    donors: Counter[str]

    def __str__(self) -> str:
        text = ", ".join(
            f"{self.cells[split]:,} {word}"
            for split, word in ((TRAIN, "training"), (VALIDATION, "validation"), (TEST, "test"))
        )
        if self.by == "donor":
            known = len(self.donors) - ("" in self.donors)
            unknown = f"; the {self.donors['']:,} cells of unknown donor are trained on" if self.donors[""] else ""
            return f"{text} cells, by {known:,} whole donors ({self.donor_key}){unknown}"
        if self.by == "cell":
            return f"{text} cells, by single cells: weaker than by donor, since cells of one donor resemble each other"
        return f"{text} cells: nothing is held out"


def draw_splits(
    datasets: Sequence[Annotated], options: SplitOptions, write: Callable[[str, npt.NDArray[np.uint8]], None]
) -> list[Drawn]:
    """Draw the splits of all data sets; a donor that several of them have is in the same split in each.

    Args:
        datasets: the data sets of a store, in order.
        options: how to split.
        write: takes the name of a data set and the splits of its next cells.

    Raises:
        DataError: whole donors were asked for, and there are too few to hold any out.
    """
    donors = [_count_donors(dataset) for dataset in datasets]
    of_donor: dict[str, int] = {}
    drawn = []
    for number, dataset in enumerate(datasets):
        own = {donor for donor in donors[number] if donor}
        others = {donor for other, cells in enumerate(donors) if other != number for donor in cells}
        by = options.by
        if by == "auto":
            by = "donor" if len(own) > 1 or own & others else "cell"
        held: Counter[int] = Counter()
        if by == "donor":
            of_donor |= assign_donors(donors[number], options, of_donor)
        donor_key = dataset.donor_key if by == "donor" else None
        for column in read_column(dataset.obs_path, donor_key or SOURCE_ROW):
            if by == "donor":
                split = np.array([of_donor[donor] for donor in donor_names(column)], np.uint8)
            elif by == "cell":
                split = split_by_cell(dataset.name, column.to_numpy(np.int64), options)
            else:
                split = np.full(len(column), TRAIN, np.uint8)
            write(dataset.name, split)
            held.update(split.tolist())
        found = donors[number] if by == "donor" else Counter()
        drawn.append(Drawn(by, donor_key, held, found))
    held_out = sum((one.cells for one in drawn), Counter[int]())
    for where, share in ((VALIDATION, options.validation), (TEST, options.test)):
        if options.by == "donor" and share > 0 and not held_out[where]:
            raise too_few_donors(len({donor for cells in donors for donor in cells if donor}))
    return drawn


def too_few_donors(known: int) -> DataError:
    """That whole donors were asked for where there are none to hold out."""
    return DataError(
        f"{known:,} known donors: too few to hold any out as a whole: use --split-by cell, or none to hold nothing out"
    )


def _count_donors(dataset: Annotated) -> Counter[str]:
    cells: Counter[str] = Counter()
    if dataset.donor_key is not None:
        for column in read_column(dataset.obs_path, dataset.donor_key):
            cells.update(donor_names(column))
    return cells


def donor_names(column: pd.Series) -> list[str]:
    """Donors as text, "" where unknown."""
    return [name or "" for name in canonical_names(column)]

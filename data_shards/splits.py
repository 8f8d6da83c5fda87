"""Which cells are held out: whole donors where donors are known, else single cells.

Cells of one donor resemble each other beyond their type, so a split by cell flatters the scores: it is labelled.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_shards.errors import DataError
from data_shards.hashing import fold, hash_string, mix64, uniform
from data_shards.store import TEST, TRAIN, VALIDATION

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

    Donors are taken in the order of a hash, and go to test, then to validation, for as long as each brings its share
    of cells nearer. If none fits, the smallest donor is held out.

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
    for split, share in ((TEST, options.test), (VALIDATION, options.validation)):
        if share == 0:
            continue
        held = sum(cells[donor] for donor, where in found.items() if where == split)
        for donor in list(free):
            if len(free) > 1 and abs(held + cells[donor] - share * total) < abs(held - share * total):
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


def donor_names(column: pd.Series) -> list[str]:
    """Donors as strings, "" where unknown."""
    return ["" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]

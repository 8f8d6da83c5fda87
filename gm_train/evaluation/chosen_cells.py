"""Which cells of a store are evaluated, and what its annotations say about them."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet

from data_shards.errors import DataError
from data_shards.files.location import Location, open_file
from data_shards.hashing import U64, fold, hash_string, mix64
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TEST, TRAIN, VALIDATION, DatasetEntry
from data_shards.store.obs_parquet import canonical_names, read_column
from gm_train.evaluation.labels import Labels

#: Cells whose split is read at once.
_SPLITS = 1 << 20
_PURPOSE = hash_string("evaluation")

I64 = npt.NDArray[np.int64]

#: The splits whose cells are held out, by their names.
HELD_OUT_SPLITS = {"validation": VALIDATION, "test": TEST}


def usual_split(entries: Iterable[DatasetEntry]) -> str:
    """Name the split to score: "test" if some of these data sets have test cells, else "validation".

    Settings are chosen on validation cells. Scores of the same cells would be too good.
    """
    return "test" if any(entry.n_test for entry in entries) else "validation"


def not_in_split(entries: Iterable[DatasetEntry], split: str) -> tuple[str, ...]:
    """Name the data sets that have no cell in the split named `split`, but held-out cells in the other one."""
    other = []
    for entry in entries:
        held_out = {"validation": entry.n_validation, "test": entry.n_test}
        if not held_out[split] and any(held_out.values()):
            other.append(entry.name)
    return tuple(other)


def choose_cells(
    store: Location, where: dict[int, DatasetEntry], max_cells: int, split: str
) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
    """Choose cells evenly by a hash, always the same ones: a quarter held out if there are as many.

    Args:
        store: has their splits.
        where: number of each data set in the store to its entry; cells of others are not chosen.
        max_cells: most cells.
        split: name of the split of the held-out cells.

    Returns:
        Their data sets and rows, int64 (n_cells,), and whether they are held out, bool (n_cells,), in the order of the
        store.

    Raises:
        DataError: there is no training cell or no held-out cell.
    """
    chosen: dict[int, tuple[U64, I64, I64]] = {}
    for code in (TRAIN, HELD_OUT_SPLITS[split]):
        draws, sets, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for which, entry in where.items():
            array = open_array(store, entry.name, "split")
            for start in range(0, entry.n_cells, _SPLITS):
                here = start + np.flatnonzero(array.read(start, min(start + _SPLITS, entry.n_cells)) == code)
                draw = mix64(here.astype(np.uint64) ^ np.uint64(fold(_PURPOSE, hash_string(entry.name))))
                least = np.argsort(draw, kind="stable")[:max_cells]
                draws.append(draw[least])
                sets.append(np.full(len(least), which, np.int64))
                rows.append(here[least])
        order = np.argsort(np.concatenate(draws), kind="stable")[:max_cells]
        chosen[code] = np.concatenate(draws)[order], np.concatenate(sets)[order], np.concatenate(rows)[order]
    n_train, n_held_out = (len(chosen[code][0]) for code in (TRAIN, HELD_OUT_SPLITS[split]))
    if not n_train or not n_held_out:
        ways = f"hold cells out with `gm-train data shards --{split}`"
        if split == "test" and n_train and (n_validation := sum(entry.n_validation for entry in where.values())):
            ways += f", or score the {n_validation:,} validation cells with `--split validation`"
        raise DataError(
            f"{store}: {n_train:,} training and {n_held_out:,} {split} cells: an evaluation needs both; {ways}"
        )
    n_held_out = min(n_held_out, max(max_cells // 4, max_cells - n_train, 1))
    n_train = min(n_train, max(max_cells - n_held_out, 1))
    takes = [(chosen[TRAIN], n_train), (chosen[HELD_OUT_SPLITS[split]], n_held_out)]
    data_set, row = (np.concatenate([part[i][:n] for part, n in takes]) for i in (1, 2))
    held_out = np.arange(n_train + n_held_out) >= n_train
    order = np.lexsort((row, data_set))
    return data_set[order], row[order], held_out[order]


def obs_column(store: Location, entry: DatasetEntry, column: str) -> pd.Series:
    """A column of the cell annotations of one data set."""
    with open_file(store / entry.name / "obs.parquet") as file:
        return pd.concat(read_column(file, column), ignore_index=True)


def read_labels(
    store: Location, where: dict[int, DatasetEntry], label: str, option: str, data_set: I64, row: I64
) -> Labels:
    """Read the label of each cell as text; None where the cell has none or its data set has no such column.

    Args:
        store: has the labels.
        where: number of each data set in the store to its entry.
        label: a column of obs.
        option: what named the column, for the message.
        data_set, row: int64 (n_cells,), of the cells.

    Raises:
        DataError: no data set has the column.
    """
    labels = np.full(len(row), None, dtype=object)
    columns: set[str] = set()
    has_label = False
    for which, entry in where.items():
        with open_file(store / entry.name / "obs.parquet") as file:
            names = pyarrow.parquet.read_schema(file).names
        columns.update(names)
        if label not in names:
            continue
        has_label = True
        here = data_set == which
        values = obs_column(store, entry, label).iloc[row[here]]
        labels[here] = [name or None for name in canonical_names(values)]
    if not has_label:
        raise DataError(f"{store}: no column {label!r} in obs: {option} can be one of {', '.join(sorted(columns))}")
    return labels

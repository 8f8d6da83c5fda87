"""Which cells of a store are evaluated, and what its annotations say about them."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet

from data_shards.errors import DataError
from data_shards.files.location import Location, open_file
from data_shards.hashing import U64, fold, hash_string, mix64
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TRAIN, VALIDATION, DatasetEntry
from data_shards.store.obs_parquet import canonical_names, read_column
from gm_train.evaluation.labels import Labels

#: Cells whose split is read at once.
_SPLITS = 1 << 20
_PURPOSE = hash_string("evaluation")

I64 = npt.NDArray[np.int64]


def choose_cells(
    store: Location, where: dict[int, DatasetEntry], max_cells: int, held_out_split: int
) -> tuple[I64, I64, npt.NDArray[np.bool_]]:
    """Choose cells evenly by a hash, always the same ones: a quarter held out if there are as many.

    Args:
        store: has their splits.
        where: number of each data set in the store to its entry; cells of others are not chosen.
        max_cells: most cells.
        held_out_split: split of the held-out cells.

    Returns:
        Their data sets and rows, int64 (n_cells,), and whether they are held out, bool (n_cells,), in the order of the
        store.

    Raises:
        DataError: there is no training cell or no held-out cell.
    """
    chosen: dict[int, tuple[U64, I64, I64]] = {}
    for split in (TRAIN, held_out_split):
        draws, sets, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for which, entry in where.items():
            array = open_array(store, entry.name, "split")
            for start in range(0, entry.n_cells, _SPLITS):
                here = start + np.flatnonzero(array.read(start, min(start + _SPLITS, entry.n_cells)) == split)
                draw = mix64(here.astype(np.uint64) ^ np.uint64(fold(_PURPOSE, hash_string(entry.name))))
                least = np.argsort(draw, kind="stable")[:max_cells]
                draws.append(draw[least])
                sets.append(np.full(len(least), which, np.int64))
                rows.append(here[least])
        order = np.argsort(np.concatenate(draws), kind="stable")[:max_cells]
        chosen[split] = np.concatenate(draws)[order], np.concatenate(sets)[order], np.concatenate(rows)[order]
    n_train, n_held_out = (len(chosen[split][0]) for split in (TRAIN, held_out_split))
    if not n_train or not n_held_out:
        name = "validation" if held_out_split == VALIDATION else "test"
        raise DataError(
            f"{store}: {n_train:,} training and {n_held_out:,} {name} cells: an evaluation needs both; "
            f"hold cells out with `gm-train data shards --{name}`"
        )
    n_held_out = min(n_held_out, max(max_cells // 4, max_cells - n_train, 1))
    n_train = min(n_train, max(max_cells - n_held_out, 1))
    takes = [(chosen[TRAIN], n_train), (chosen[held_out_split], n_held_out)]
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

"""Read the label of every cell of a store, and choose the classes that a run learns."""

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from data_shards.errors import DataError
from data_shards.files.location import open_file
from data_shards.rows.store_reader import StoreReader
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TRAIN, VALIDATION, DatasetEntry
from data_shards.store.obs_parquet import canonical_names, read_column
from gm_train.config.schema import TaskConfig
from gm_train.model.classes import UNKNOWN, Classes
from gm_train.objective.cell_classes import CellClasses, first_cells

log = logging.getLogger(__name__)

_NAMED = 6  # classes that a message names


def read_cell_classes(reader: StoreReader, task: TaskConfig, weights: Mapping[str, int]) -> CellClasses:
    """Read the label of every cell and number its classes: the labels of enough training cells, sorted.

    A warning names the classes that are left out, and says how many training cells have no label.

    Args:
        reader: of the store.
        task: `label` and `min_cells` are used.
        weights: `data.weights`: how often the cells of each data set come in a pass, 1 for those not named. Cells count
            as often as they come.

    Raises:
        DataError: no data set has the column, no training cell or no validation cell has a label that can be learned,
            or there are fewer than two classes.
    """
    where = f"task.label={task.label}: {reader.path}"
    code_of: dict[str, int] = {}
    datasets = reader.manifest.datasets
    codes = np.concatenate([_read_codes(reader, entry, task.label, code_of) for entry in datasets])
    split = np.concatenate([open_array(reader.path, entry.name, "split").read(0, entry.n_cells) for entry in datasets])
    columns = set().union(*(_columns(reader, entry) for entry in datasets))
    if task.label not in columns:
        raise DataError(f"{where}: no such column in obs; it has {', '.join(sorted(columns))}")
    often = np.repeat([weights.get(entry.name, 1) for entry in datasets], [entry.n_cells for entry in datasets])
    is_train = (split == TRAIN) & (often > 0)
    counted = is_train & (codes >= 0)
    of_code = np.bincount(codes[counted], often[counted], minlength=len(code_of))
    n_train = {name: int(of_code[code]) for name, code in sorted(code_of.items()) if of_code[code]}
    if not n_train:
        raise DataError(f"{where}: no training cell has a label: name another column, or fill in this one")
    kept = [name for name, n in n_train.items() if n >= task.min_cells]
    rare_cells = {name: n for name, n in n_train.items() if n < task.min_cells}
    rare = _listed(rare_cells)
    if UNKNOWN in kept:
        raise DataError(
            f"{where}: {n_train[UNKNOWN]:,} training cells have the label {UNKNOWN!r}, which `gm-train predict` gives "
            "to cells that it cannot tell: leave these cells without a label (NaN), or rename it"
        )
    if len(kept) < 2:
        found = f"{kept[0]!r} alone has" if kept else "no class has"
        left = f" (too few: {rare})" if rare else ""
        raise DataError(
            f"{where}: {found} at least task.min_cells={task.min_cells} training cells{left}, and a classifier needs "
            "two classes: name another column, lower task.min_cells or add cells"
        )
    # A held-out cell with another label counts in the calibration: the classifier cannot be right about it.
    number_of_code = np.full(len(code_of) + 1, len(kept))
    number_of_code[-1] = -1
    for number, name in enumerate(kept):
        number_of_code[code_of[name]] = number
    numbers = number_of_code[codes]
    numbers[(split == TRAIN) & (numbers == len(kept))] = -1
    if not ((split == VALIDATION) & (numbers >= 0) & (numbers < len(kept))).any():
        raise DataError(
            f"{where}: no validation cell has one of the {len(kept)} labels, and without them there is no threshold "
            f"for {UNKNOWN!r}: make the store with `gm-train data shards --split-by donor --validation 0.2`"
        )
    if rare:
        log.warning(
            "task.label=%s: %d of %d classes, with %.0f %% of the labelled training cells, are left out, because they "
            "have fewer than task.min_cells=%d: %s",
            task.label, len(rare_cells), len(n_train), 100 * sum(rare_cells.values()) / sum(n_train.values()),
            task.min_cells, rare,
        )  # fmt: skip
    if n_unlabelled := int((is_train & (codes < 0)).sum()):
        log.warning("task.label=%s: %s training cells have no label and are not used", task.label, f"{n_unlabelled:,}")
    classes = Classes(task.label, tuple(kept), tuple(n_train[name] for name in kept))
    small = len(kept) < np.iinfo(np.int16).max
    return CellClasses(classes, numbers.astype(np.int16 if small else np.int32), first_cells(reader.manifest))


def _read_codes(reader: StoreReader, entry: DatasetEntry, label: str, code_of: dict[str, int]) -> npt.NDArray[np.int32]:
    """The code of each cell's label, int32 (n_cells,), -1 where it is missing or empty. New labels get new codes."""
    if label not in _columns(reader, entry):
        return np.full(entry.n_cells, -1, np.int32)
    parts = []
    with open_file(reader.path / entry.name / "obs.parquet") as file:
        for batch in read_column(file, label):
            names = canonical_names(batch)
            parts.append(np.array([code_of.setdefault(n, len(code_of)) if n else -1 for n in names], np.int32))
    return np.concatenate(parts)


def _columns(reader: StoreReader, entry: DatasetEntry) -> set[str]:
    with open_file(reader.path / entry.name / "obs.parquet") as file:
        return set(pq.read_schema(file).names)


def _listed(n_cells: dict[str, int]) -> str:
    """Classes with their numbers of cells; the first few of many."""
    shown = ", ".join(f"{name} ({n:,})" for name, n in list(n_cells.items())[:_NAMED])
    return shown + (f" and {len(n_cells) - _NAMED} more" if len(n_cells) > _NAMED else "")

"""How near the cells of training steps are to a full shuffle of the store.

The composition of a step (which share of its cells is of which data set, or of which cell type) strays from that of the
store. Some of it is chance: as many cells drawn evenly from the whole store stray, too. What is beyond that comes from
reading blocks of cells that stand together in their file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from data_shards.files.location import Location, open_file
from data_shards.rows.lanes import Lanes, block_order
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from data_shards.store.arrays import open_array
from data_shards.store.manifest import TRAIN
from data_shards.store.obs_parquet import canonical_names, read_column
from data_shards.workers.progress import Progress

_SHUFFLES = 400  # drawn from a full shuffle
_CELLS = 1 << 20  # whose split is looked at at a time
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mixing:
    """How far steps stray from the composition of the store.

    Attributes:
        cells: mean number of cells of what is compared: a step, or several steps in a row.
        distance: mean total variation distance of its composition from the store's, 0 … 1.
        shuffled: the same of as many cells drawn evenly from the store.
    """

    cells: float
    distance: float
    shuffled: float

    @property
    def excess(self) -> float:
        """How many times as far as a full shuffle: 1 is one."""
        return self.distance / self.shuffled


def label_codes(reader: StoreReader, column: str) -> list[I64]:
    """A column of obs as whole numbers, the same for the same text in every data set: int64 (n_cells,) for each.

    Raises:
        DataError: a data set has no such column.
    """
    numbers: dict[str | None, int] = {}
    codes = []
    for entry in reader.manifest.datasets:
        path: Location = reader.path / entry.name / "obs.parquet"
        with open_file(path) as file:
            try:
                names = [name for part in read_column(file, column) for name in canonical_names(part)]
            except (KeyError, ValueError, OSError) as error:
                raise DataError(f"{path}: column {column!r} cannot be read ({error})") from error
        codes.append(np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64))
    return codes


def measure_mixing(
    reader: StoreReader,
    plan: RowPlan,
    rows_per_lane: int,
    n_steps: int,
    labels: Sequence[I64] | None = None,
    steps_together: Sequence[int] = (1,),
) -> list[Mixing]:
    """Compare steps, from the start of a run on, with a full shuffle.

    Args:
        reader: of the store.
        plan: how it is read; all of its lanes are.
        rows_per_lane: rows that a step takes from each lane.
        n_steps: steps that are read.
        labels: int64 (n_cells,) from 0 for each data set, such as its cell types; none: the data sets themselves.
        steps_together: steps in a row whose cells are compared as one; more than `n_steps` are not.

    Returns:
        One for each of `steps_together`.
    """
    datasets = reader.manifest.datasets
    if labels is None:
        labels = [np.full(entry.n_cells, which, np.int64) for which, entry in enumerate(datasets)]
    n_labels = 1 + max(int(of_set.max()) for of_set in labels)
    store = np.zeros(n_labels)
    for entry, of_set in zip(datasets, labels, strict=True):
        split = open_array(reader.path, entry.name, "split")
        for start in range(0, entry.n_cells, _CELLS):
            held = of_set[start : start + _CELLS][split.read(start, min(start + _CELLS, entry.n_cells)) == TRAIN]
            store += plan.weights.get(entry.name, 1) * np.bincount(held, minlength=n_labels)
    store /= store.sum()

    order, lanes = block_order(reader, plan), Lanes(reader, plan, dict.fromkeys(range(plan.lanes), (0, 0)))
    flat = np.concatenate(labels)
    cells_of_block = reader.manifest.block_cells
    n_cells = np.array([entry.n_cells for entry in datasets])
    first_cell = np.cumsum(n_cells) - n_cells
    first_block = np.cumsum(reader.manifest.n_blocks) - reader.manifest.n_blocks
    counts = np.zeros((n_steps, n_labels), np.int64)
    for step in Progress(range(n_steps), desc="measuring the mixing", unit=" steps"):
        rows = lanes.take(rows_per_lane)
        blocks = order.blocks(rows.places)
        which = np.searchsorted(first_block, blocks, side="right") - 1
        cells = first_cell[which] + (blocks - first_block[which]) * cells_of_block + rows.cells
        counts[step] = np.bincount(flat[cells], minlength=n_labels)

    found = []
    rng = np.random.default_rng(0)
    for together in steps_together:
        n = n_steps // together
        if n == 0:
            continue
        read = counts[: n * together].reshape(n, together, n_labels).sum(axis=1)
        drawn = rng.multinomial(round(float(read.sum(axis=1).mean())), store, _SHUFFLES)
        far, by_chance = (
            float(np.abs(sums / sums.sum(axis=1, keepdims=True) - store).sum(axis=1).mean() / 2)
            for sums in (read, drawn)
        )
        found.append(Mixing(float(read.sum(axis=1).mean()), far, by_chance))
    return found

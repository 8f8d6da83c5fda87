"""Measure how close the cells of training steps come to a full shuffle of the store.

The composition of a step (the share of its cells in each data set, or of each cell type) differs from that of the
store. Part of the difference is chance: the same number of cells, drawn evenly from the whole store, differs as well.
The rest comes from reading blocks of cells that are neighbours in their file.
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

_SHUFFLES = 400  # steps drawn from a full shuffle
_CELLS = 1 << 20  # cells whose split is read at a time
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mixing:
    """How far the composition of steps is from that of the store.

    Attributes:
        cells: mean number of cells that are compared as one: those of a step, or of several steps in a row.
        distance: mean total variation distance of their composition from the store's, 0 … 1.
        shuffled: the same distance for as many cells drawn evenly from the store.
    """

    cells: float
    distance: float
    shuffled: float

    @property
    def excess(self) -> float:
        """The distance as a multiple of a full shuffle's: 1 means fully shuffled."""
        return self.distance / self.shuffled


def label_codes(reader: StoreReader, column: str) -> list[I64]:
    """Read a column of obs as whole numbers; the same text has the same number in every data set.

    Returns:
        For each data set int64 (n_cells,).

    Raises:
        DataError: a data set has no such column, or it cannot be read.
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
    """Compare the first steps of a run with a full shuffle.

    Args:
        reader: reader of the store.
        plan: how the store is read; all lanes are read.
        rows_per_lane: rows that a step takes from each lane.
        n_steps: number of steps to read.
        labels: for each data set int64 (n_cells,) from 0, such as cell types; None compares data sets.
        steps_together: numbers of steps in a row whose cells are compared as one; those above `n_steps` are skipped.

    Returns:
        One result for each of `steps_together` that is not skipped.
    """
    datasets = reader.manifest.datasets
    if labels is None:
        labels = [np.full(entry.n_cells, which, np.int64) for which, entry in enumerate(datasets)]
    n_labels = 1 + max(int(of_set.max()) for of_set in labels)
    expected = np.zeros(n_labels)
    for entry, of_set in zip(datasets, labels, strict=True):
        split = open_array(reader.path, entry.name, "split")
        for start in range(0, entry.n_cells, _CELLS):
            train = of_set[start : start + _CELLS][split.read(start, min(start + _CELLS, entry.n_cells)) == TRAIN]
            expected += plan.weights.get(entry.name, 1) * np.bincount(train, minlength=n_labels)
    expected /= expected.sum()

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

    results = []
    rng = np.random.default_rng(0)
    for together in steps_together:
        n = n_steps // together
        if n == 0:
            continue
        read = counts[: n * together].reshape(n, together, n_labels).sum(axis=1)
        drawn = rng.multinomial(round(float(read.sum(axis=1).mean())), expected, _SHUFFLES)
        distance, shuffled = (
            float(np.abs(sums / sums.sum(axis=1, keepdims=True) - expected).sum(axis=1).mean() / 2)
            for sums in (read, drawn)
        )
        results.append(Mixing(float(read.sum(axis=1).mean()), distance, shuffled))
    return results

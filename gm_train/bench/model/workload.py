"""The cells that are trained on: batches as training makes them, from simulated cells or the user's store."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_shards.counts.filters import CellFilter
from data_shards.errors import DataError
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.rows.block_order import BlockOrder
from data_shards.rows.pool import RowPlan, Rows, pack_pool
from data_shards.rows.store_reader import StoreReader
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.write_atlas import write_atlas
from data_shards.store.manifest import TRAIN
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.batches import MicroBatch, StepInfo, make_examples, split
from gm_train.objective.pathway import pathways_of
from gm_train.objective.recipe import Recipe

#: Tokens of the longest simulated cells.
DEEPEST = 8192
_GENES = 25_424  # genes of the published vocabulary
_NATURAL_TOP_K = 2048
_BLOCKS_AT_ONCE = 16


@dataclass(frozen=True)
class Stores:
    """The stores that cells are read from.

    Attributes:
        deep: store whose cells all have `DEEPEST` tokens.
        natural: store whose cells have natural lengths; it has the same vocabulary as `deep`.
        gmt: gene sets of the same genes.
    """

    deep: Path
    natural: Path
    gmt: Path


def simulated_stores(folder: Path, deep_cells: int, natural_cells: int = 512) -> Stores:
    """Simulate cells and make stores in `folder`, unless they exist.

    Both stores are made by the simulator, the medians and the tokenizer of `gm-train data`. Deep cells have a median of
    150,000 molecules, so that at least 8,192 genes are detected; cells with fewer genes are left out. Natural cells
    have a median of 1,500 molecules, before dropout.

    Args:
        folder: where the files are written.
        deep_cells: number of deep cells to simulate.
        natural_cells: number of natural cells.
    """
    stores = Stores(folder / "deep.zarr", folder / "natural.zarr", folder / "deep.gmt")
    shared = AtlasOptions(genes=_GENES, genes_per_programme=50)
    wanted = {
        "deep": (replace(shared, cells=deep_cells, counts_per_cell=150_000.0, donors=2, batches=2), DEEPEST),
        "natural": (replace(shared, cells=natural_cells, counts_per_cell=1_500.0, seed=1), _NATURAL_TOP_K),
    }
    medians = folder / "medians.zarr"

    def quiet(line: str) -> None:
        pass

    for name, (options, _) in wanted.items():
        if not (folder / f"{name}.h5ad").exists():
            write_atlas(folder / f"{name}.h5ad", options)
    if not medians.exists():
        make_medians([folder / f"{name}.h5ad" for name in wanted], medians, say=quiet)
    for name, (_, top_k) in wanted.items():
        if not (folder / f"{name}.zarr").exists():
            make_store(
                [folder / f"{name}.h5ad"],
                medians,
                folder / f"{name}.zarr",
                top_k=top_k,
                cells=CellFilter(min_genes=DEEPEST if name == "deep" else 0),
                splits=SplitOptions(by="none"),
                say=quiet,
            )
    return stores


@dataclass(frozen=True)
class Workload:
    """The cells of a step.

    Attributes:
        store: token store.
        length: number of best-ranked genes that a cell is cut to; None cuts only to `row_length`.
        row_length: tokens per packed row.
        tokens_per_step: tokens of all rows of a step.
        n_batches: number of different batches, used in turn.
        seed: seed of order and masks.
    """

    store: Path
    length: int | None
    row_length: int
    tokens_per_step: int
    n_batches: int = 8
    seed: int = 0

    @property
    def rows(self) -> int:
        """Number of packed rows per step."""
        return max(1, self.tokens_per_step // self.row_length)

    @property
    def padded_length(self) -> int:
        """Length of a row that holds one cell and pads."""
        return min(self.length or self.row_length, self.row_length)


@dataclass(frozen=True)
class Shape:
    """The average size of a step of a workload, for one contender.

    Attributes:
        cells, tokens, targets: cells, real tokens and predicted positions of a step.
        slots: positions that are computed, pads included.
        context: tokens of a token's cell, averaged over tokens.
        each: cells and real tokens of each batch; the steps use the batches in turn.
    """

    cells: float
    tokens: float
    targets: float
    slots: float
    context: float
    each: tuple[tuple[int, int], ...]


def read_packed_rows(workload: Workload) -> Rows:
    """Read packed rows for all batches: training cells of the store, in the order of a run with one lane.

    Raises:
        DataError: the store cannot be read or has too few cells.
    """
    reader = StoreReader(workload.store)
    order = BlockOrder(workload.seed, reader.manifest.hash, reader.manifest.n_blocks)
    plan = RowPlan(workload.seed, 1, _BLOCKS_AT_ONCE, 512, workload.row_length)
    wanted = workload.rows * workload.n_batches
    parts: list[Rows] = []
    for first in range(0, order.size, _BLOCKS_AT_ONCE):
        places = np.arange(first, min(first + _BLOCKS_AT_ONCE, order.size))
        blocks = reader.read(order.blocks(places).tolist())
        parts.append(pack_pool(blocks, places, TRAIN, plan, first, longest=workload.padded_length))
        if sum(map(len, parts)) >= wanted:
            return Rows.join(parts).part(0, wanted)
    rows = Rows.join(parts)
    if len(rows) < workload.rows:
        raise DataError(
            f"{workload.store}: its training cells fill {len(rows)} rows of {workload.row_length:,} tokens, but a step "
            f"takes {workload.rows}: lower --tokens-per-step"
        )
    return rows.part(0, len(rows) // workload.rows * workload.rows)


def make_batches(
    workload: Workload, objective: ObjectiveConfig, padded: bool, all_positions: bool
) -> tuple[list[MicroBatch], Shape]:
    """Make the batches of a workload, one forward pass each.

    Args:
        workload: the cells.
        objective: masks, and gene sets for L_pathway if it names a file.
        padded: one cell per row, padded to `Workload.padded_length`; the cells are the same as in packed rows.
        all_positions: predict the next token everywhere instead of masked tokens; with `padded`, pads are also targets.

    Returns:
        The batches and their average shape.
    """
    rows = read_packed_rows(workload)
    tokenizer = Tokenizer.load(workload.store)
    if all_positions:
        objective = replace(objective, language="next_token", paper_compat=True)
    pathways = pathways_of(objective, tokenizer)
    recipe = Recipe(objective, workload.seed, tokenizer.vocabulary.size, workload.row_length, pathways)
    steps = [rows.part(i, i + workload.rows) for i in range(0, len(rows), workload.rows)]
    if padded:
        batches = [_pad(step, workload.padded_length) for step in steps]
    else:
        batches = [split(make_examples(step, recipe), workload.rows, {})[0] for step in steps]
    lengths = rows.lengths.astype(np.float64)

    def mean(counts: list[int]) -> float:
        return sum(counts) / len(counts)

    infos = [batch.info for batch in batches]
    return batches, Shape(
        cells=mean([info.n_cells for info in infos]),
        tokens=mean([info.n_tokens for info in infos]),
        targets=mean([info.n_targets for info in infos]),
        slots=mean([info.n_slots for info in infos]),
        context=float((lengths**2).sum() / lengths.sum()),
        each=tuple((info.n_cells, info.n_tokens) for info in infos),
    )


def _pad(rows: Rows, row_length: int) -> MicroBatch:
    """Put one cell in each row, as the published code does: pads are tokens and targets like all others."""
    cells = np.split(rows.tokens, np.cumsum(rows.lengths)[:-1])
    ids = np.zeros((len(cells), row_length), np.int64)
    for i, cell in enumerate(cells):
        ids[i, : len(cell)] = cell
    at = np.arange(ids.size).reshape(ids.shape)[:, :-1]
    n_tokens = sum(map(len, cells))
    info = StepInfo(at.size, 0, len(cells), n_tokens, ids.size, 0, {})
    input_ids = torch.from_numpy(ids)
    return MicroBatch(
        input_ids=input_ids,
        segment=torch.ones_like(input_ids),
        target_at=torch.from_numpy(at.flatten()),
        targets=input_ids[:, 1:].flatten(),
        drawn=torch.empty(len(cells), 0, dtype=torch.int64),
        positive=torch.empty(len(cells), 0, 0, dtype=torch.bool),
        most_cells=1,
        info=info,
        first=True,
        last=True,
    )

"""The batches of one rank: its lanes of the store from a given position on, and the held-out cells."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_shards.errors import DataError
from data_shards.rows.block_order import BlockOrder
from data_shards.rows.lanes import AHEAD_BYTES, Lanes, validation_order, validation_rows
from data_shards.rows.pool import RowPlan, Rows
from data_shards.rows.store_reader import StoreReader
from data_shards.store.quarantine import DamagedChunk
from gm_train.config.schema import DataConfig
from gm_train.loading.copied_ahead import copied_ahead
from gm_train.loading.position import Position
from gm_train.objective.batches import Examples, MicroBatch, join, make_examples, split
from gm_train.objective.padded_targets import padded_targets
from gm_train.objective.recipe import Recipe
from gm_train.ranks.ranks import Ranks
from gm_train.ranks.signals import children_deaf

_CPU = torch.device("cpu")


@dataclass
class Piece:
    """One loader worker's part of a step.

    Attributes:
        examples: the rows of its lanes.
        positions: for each of its lanes the (pool, row) after these rows.
        damaged: chunks of tokens that it found damaged since its last part.
    """

    examples: Examples
    positions: dict[int, tuple[int, int]]
    damaged: tuple[DamagedChunk, ...]


class LaneDataset(IterableDataset[Piece | DataError]):
    """Yields, step by step, the rows of a loader worker's own lanes: worker w of W takes the w-th part of the lanes.

    A DataError is yielded, not raised: raised in a worker, its message would be buried in a traceback.

    Args:
        data: settings of the data.
        plan: how the rows of a lane are made.
        recipe: what turns rows into examples.
        lanes: for each lane of this rank the (pool, row) to start at.
        n_steps: number of steps to yield.
        store_hash: hash of the store that the run started on, or None.
    """

    def __init__(
        self,
        data: DataConfig,
        plan: RowPlan,
        recipe: Recipe,
        lanes: dict[int, tuple[int, int]],
        n_steps: int,
        store_hash: str | None,
    ) -> None:
        self.data, self.plan, self.recipe, self.lanes, self.n_steps = data, plan, recipe, lanes, n_steps
        self.store_hash = store_hash

    def __iter__(self) -> Iterator[Piece | DataError]:
        try:
            yield from self._pieces()
        except DataError as error:
            yield error

    def _pieces(self) -> Iterator[Piece]:
        worker = get_worker_info()
        number, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        own = np.array_split(sorted(self.lanes), n_workers)[number].tolist()
        cache_bytes = (self.data.cache_mb << 20) // n_workers
        reader = StoreReader(self.data.store, cache_bytes, self.data.max_damaged_chunks, self.store_hash)
        lanes = Lanes(reader, self.plan, {lane: self.lanes[lane] for lane in own}, AHEAD_BYTES // n_workers)
        for _ in range(self.n_steps):
            examples = _examples(lanes.take(self.data.fixed_rows_per_lane), self.recipe, lanes.order)
            yield Piece(examples, lanes.positions, reader.quarantine.take_new())


def _examples(rows: Rows, recipe: Recipe, order: BlockOrder) -> Examples:
    """Make the examples of rows whose cells have places in `order`."""
    known = recipe.cell_classes
    return make_examples(rows, recipe, None if known is None else known.of(order.blocks(rows.places), rows.cells))


def _as_it_is(item: Any) -> Any:
    return item


class StepLoader:
    """The micro-batches of all steps from a position on. It can be iterated once.

    The rows of a step come in the order of the lanes, whatever the number of workers.

    Args:
        dataset: the steps of this rank's lanes.
        micro_rows: rows of a forward pass.
        device: where the batches are used; for a GPU, targets are padded and each batch is copied ahead.

    Attributes:
        waited_s: seconds that training has waited for batches so far; without workers, the time to make them.
    """

    def __init__(self, dataset: LaneDataset, micro_rows: int, device: torch.device = _CPU) -> None:
        self._dataset, self._micro_rows, self._device = dataset, micro_rows, device
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[MicroBatch]:
        batches = self._batches()
        if self._device.type == "cuda":
            batches = (padded_targets(batch, self._dataset.recipe) for batch in batches)
        return copied_ahead(batches, self._device)

    def _batches(self) -> Iterator[MicroBatch]:
        n_workers = min(self._dataset.data.workers, len(self._dataset.lanes))
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_size=None,
            num_workers=n_workers,
            collate_fn=_as_it_is,
            # TensorStore runs threads, which a forked child would not have.
            multiprocessing_context="spawn" if n_workers else None,
        )
        # iter() draws a base seed from the global generator. Nothing uses it, so the generator's state is restored.
        with torch.random.fork_rng(devices=[]), children_deaf():
            items = iter(loader)
        # A step is made before the last micro-batch of the step before is used: that one brings the counts of this.
        waiting: MicroBatch | None = None
        for _ in range(self._dataset.n_steps):
            try:
                batches = self._step(items, max(1, n_workers))
            except DataError:
                if waiting is not None:
                    yield waiting
                raise
            if waiting is not None:
                yield replace(waiting, ahead=batches[0].info)
            yield from batches[:-1]
            waiting = batches[-1]
        if waiting is not None:
            yield waiting

    def _step(self, items: Iterator[Piece | DataError], n_pieces: int) -> list[MicroBatch]:
        """Make the micro-batches of the next step from the parts of all workers."""
        begun = time.perf_counter()
        pieces = []
        # The loader takes one item from each worker in turn, which is the order of their lanes.
        for _ in range(n_pieces):
            item = next(items)
            if isinstance(item, DataError):
                raise item
            pieces.append(item)
        positions = {lane: position for piece in pieces for lane, position in piece.positions.items()}
        damaged = tuple(chunk for piece in pieces for chunk in piece.damaged)
        examples = join([piece.examples for piece in pieces])
        batches = split(examples, self._micro_rows, positions, damaged)
        self.waited_s += time.perf_counter() - begun
        return batches


class RankBatches:
    """The micro-batches of one rank: rank r of K reads the lanes v with v mod K = r.

    Args:
        data: settings of the data, as `data_of_ranks` returns them.
        recipe: what turns rows into examples.
        position: where training begins; not changed here.
        max_steps: the step after which the loader ends.
        validation_cells: at most so many held-out cells in a validation.
        ranks: this process among the others.
    """

    def __init__(
        self,
        data: DataConfig,
        recipe: Recipe,
        position: Position,
        max_steps: int,
        validation_cells: int,
        ranks: Ranks,
    ) -> None:
        self._ranks = ranks
        self.data, self.recipe, self.position = data, recipe, position
        self.max_steps, self.validation_cells = max_steps, validation_cells
        assert data.pool_blocks is not None, "fit sets data.pool_blocks before"
        assert data.micro_rows is not None, "data_of_ranks chooses data.micro_rows"
        self.micro_rows = data.micro_rows
        self.plan = RowPlan(
            recipe.seed, data.lanes, data.pool_blocks, data.group_cells, recipe.row_length, dict(data.weights)
        )
        self._validation: list[MicroBatch] | None = None
        self._loader: StepLoader | None = None

    @property
    def per_step(self) -> int:
        """Number of this rank's micro-batches in a step."""
        rows = self.data.step_rows // self._ranks.world_size
        return -(-rows // self.micro_rows)

    def train_batches(self, device: torch.device = _CPU) -> StepLoader:
        """Make the loader of this rank's lanes, from the present position to `max_steps`.

        Args:
            device: a GPU to which each batch is copied ahead; with the CPU, batches are left where they are.
        """
        n_steps = max(0, self.max_steps - self.position.step)
        rank, size = self._ranks.global_rank, self._ranks.world_size
        own = {lane: position for lane, position in self.position.lanes.items() if lane % size == rank}
        lanes = LaneDataset(self.data, self.plan, self.recipe, own, n_steps, self.position.store_hash)
        self._loader = StepLoader(lanes, self.micro_rows, device)
        return self._loader

    @property
    def waited_s(self) -> float:
        """Seconds that training has waited for batches so far, on this rank."""
        return 0.0 if self._loader is None else self._loader.waited_s

    def validation_batches(self) -> list[MicroBatch]:
        """Return held-out cells with fixed masks: the same at every validation and for every seed of the run.

        The list is empty if no cells are held out.
        """
        if self._validation is None:
            cache_bytes, as_of = self.data.cache_mb << 20, self.position.store_hash
            reader = StoreReader(self.data.store, cache_bytes, self.data.max_damaged_chunks, as_of)
            rows = validation_rows(reader, replace(self.plan, seed=0), self.validation_cells)
            recipe = replace(self.recipe, seed=0)
            examples = _examples(rows, recipe, validation_order(reader, 0)) if len(rows) else None
            damaged = reader.quarantine.take_new()
            self._validation = split(examples, self.micro_rows, {}, damaged) if examples else []
        return self._validation


class Turns:
    """The validation batches of one rank: the ranks take turns.

    All ranks gather sharded layers together, so each must run as many passes, even if the last ones do not count.

    Args:
        batches: of all ranks.
        ranks: this process among the others.
    """

    def __init__(self, batches: list[MicroBatch], ranks: Ranks) -> None:
        self._batches, self._ranks = batches, ranks

    def __len__(self) -> int:
        """Number of passes of each rank."""
        return -(-len(self._batches) // self._ranks.world_size)

    def __iter__(self) -> Iterator[tuple[MicroBatch, bool]]:
        """Yield each batch, and whether it counts."""
        for first in range(0, len(self._batches), self._ranks.world_size):
            own = first + self._ranks.global_rank
            yield self._batches[min(own, len(self._batches) - 1)], own < len(self._batches)

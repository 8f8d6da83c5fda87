"""Promise 4, order of the data: with any ranks, loader workers and kills, a run reads what one process would read."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.rows import block_order
from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import TEST, TRAIN, VALIDATION
from gm_train.config.schema import DataConfig, ObjectiveConfig
from gm_train.loading import rank_batches
from gm_train.loading.position import Position
from gm_train.loading.rank_batches import RankBatches
from gm_train.objective.batches import Examples, MicroBatch, make_examples
from gm_train.objective.recipe import Recipe
from gm_train.ranks.ranks import Ranks
from tests.support.random_stores import write_store

LONGEST, ROW = 24, 40


@dataclass(frozen=True)
class Start:
    """One start of a run: numbers of ranks, loader workers and rows of a micro-batch, and steps until it is killed."""

    ranks: int
    workers: int
    micro_rows: int
    steps: int


@dataclass(frozen=True)
class Case:
    store: Path
    data: DataConfig
    seed: int
    starts: tuple[Start, ...]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Stores of one to four data sets, some tiny, some with whole blocks that have no training cells."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(7)
    for number in range(24):
        splits = []
        for _ in range(int(rng.integers(1, 5))):
            n_cells = int(rng.choice([1, 2, 7, 30, 90]))
            split = rng.choice([TRAIN, VALIDATION, TEST], n_cells, p=[0.6, 0.3, 0.1]).astype(np.uint8)
            if n_cells > 20 and rng.random() < 0.5:
                split[: n_cells // 2] = VALIDATION
            splits.append(split)
        splits[0][0] = TRAIN
        if number == 0:
            splits = [np.zeros(90, np.uint8), np.zeros(70, np.uint8)]
        write_store(folder / str(number), splits, int(rng.choice([1, 2, 8])), seed=number, longest=LONGEST)
    return sorted(folder.iterdir())


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@st.composite
def cases(draw: st.DrawFn, stores: list[Path]) -> Case:
    store = draw(st.sampled_from(stores))
    names = [entry.name for entry in StoreReader(store).manifest.datasets]
    # d0 always has a cell to train on.
    weights = {name: draw(st.integers(int(name == "d0"), 3)) for name in draw(st.sets(st.sampled_from(names)))}
    lanes = draw(st.sampled_from([1, 2, 4, 6, 12]))
    rows_per_lane = draw(st.integers(1, 3))
    starts = []
    for _ in range(draw(st.integers(1, 4))):
        ranks = draw(st.sampled_from(divisors(lanes)))
        micro_rows = draw(st.sampled_from(divisors(lanes * rows_per_lane // ranks)))
        starts.append(Start(ranks, draw(st.integers(0, 4)), micro_rows, draw(st.integers(0, 4))))
    data = DataConfig(
        store=str(store),
        lanes=lanes,
        rows_per_lane=rows_per_lane,
        row_length=ROW,
        pool_blocks=draw(st.integers(1, 6)),
        group_cells=draw(st.sampled_from([2, 8, 1000])),
        weights=weights,
        cache_mb=1,
    )
    return Case(store, data, draw(st.integers(0, 5)), tuple(starts))


class TurnsInOneProcess:
    """A stand-in for the DataLoader, whose worker processes take turns: here they do so in one process."""

    def __init__(self, dataset: Any, num_workers: int = 0, **_: Any) -> None:
        self._dataset, self._n_workers = dataset, num_workers

    def _worker(self, number: int) -> Iterator[Any]:
        info = None
        if self._n_workers:
            info = SimpleNamespace(id=number, num_workers=self._n_workers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rank_batches, "get_worker_info", lambda: info)
            items = iter(self._dataset)
            first = next(items, None)
        return itertools.chain([] if first is None else [first], items)

    def __iter__(self) -> Iterator[Any]:
        workers = [self._worker(number) for number in range(max(1, self._n_workers))]
        for items in zip(*workers, strict=True):
            yield from items


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no processes and open each store once, so that three hundred runs take seconds."""
    monkeypatch.setattr(rank_batches, "DataLoader", TurnsInOneProcess)
    monkeypatch.setattr(rank_batches, "StoreReader", functools.cache(StoreReader))


def recipe_of(case: Case) -> Recipe:
    return Recipe(ObjectiveConfig(language="masked", mask_rate=0.4, random_rate=0.3), case.seed, 202, ROW, None)


def from_the_start(case: Case, n_steps: int) -> list[tuple[Examples, dict[int, tuple[int, int]]]]:
    """Each step as one process reads it, and the positions of the lanes after it."""
    data = case.data
    assert data.pool_blocks is not None
    plan = RowPlan(case.seed, data.lanes, data.pool_blocks, data.group_cells, ROW, data.weights)
    lanes = Lanes(StoreReader(case.store), plan, dict.fromkeys(range(data.lanes), (0, 0)))
    return [(make_examples(lanes.take(data.rows_per_lane), recipe_of(case)), lanes.positions) for _ in range(n_steps)]


def steps_of(module: RankBatches) -> Iterator[list[MicroBatch]]:
    """The micro-batches of each step of one rank."""
    step: list[MicroBatch] = []
    for batch in module.train_batches():
        assert batch.first == (not step)
        step.append(batch)
        if batch.last:
            yield step
            step = []


def by_lane(per_rank: list[list[MicroBatch]], data: DataConfig, tensor: str) -> np.ndarray:
    """Put the rows of a step, given by rank, into the order of the lanes: (lanes * rows_per_lane, ROW)."""
    whole = np.full((data.lanes, data.rows_per_lane, ROW), -1)
    for rank, batches in enumerate(per_rank):
        rows = torch.cat([getattr(batch, tensor) for batch in batches]).numpy()
        whole[rank :: len(per_rank)] = rows.reshape(-1, data.rows_per_lane, ROW)
    return whole.reshape(-1, ROW)


def check(case: Case) -> None:
    """Start, kill and resume a run as the case says; check that every step is what one process would have read."""
    expected = from_the_start(case, sum(start.steps for start in case.starts))
    position = Position.start(case.data.lanes)
    for start in case.starts:
        data = replace(case.data, workers=start.workers, micro_rows=start.micro_rows)
        modules = [
            RankBatches(data, recipe_of(case), position, position.step + start.steps + 1, 0, Ranks(r, start.ranks))
            for r in range(start.ranks)
        ]
        loaders = [steps_of(module) for module in modules]
        lanes = dict(position.lanes)
        for _ in range(start.steps):
            per_rank = [next(loader) for loader in loaders]
            examples, positions = expected[position.step]
            assert np.array_equal(by_lane(per_rank, data, "input_ids"), examples.input_ids)
            assert np.array_equal(by_lane(per_rank, data, "segment"), examples.segment)
            infos = [batches[-1].info for batches in per_rank]
            assert sum(info.sample_hash for info in infos) % 2**64 == examples.sample_hash
            assert sum(info.n_cells for info in infos) == examples.n_cells
            assert sum(info.n_targets for info in infos) == len(examples.targets)
            for info in infos:
                lanes |= info.lanes
            assert lanes == positions
            position.step += 1
        # The kill loses what the loaders had read beyond the last step; the position is that of the last step.
        position = Position(position.step, 0, lanes)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_promise_04_any_topology_reads_what_one_process_reads(
    stores: list[Path], one_process: None, data: st.DataObject
) -> None:
    check(data.draw(cases(stores)))


@pytest.mark.slow
def test_promise_04_with_worker_processes(stores: list[Path]) -> None:
    """Real worker processes: two, then three that share the lanes unevenly, then none."""
    data = DataConfig(
        store=str(stores[3]), lanes=8, rows_per_lane=2, row_length=ROW, pool_blocks=2, group_cells=8, weights={"d0": 3}
    )
    check(Case(stores[3], data, 1, (Start(1, 2, 16, 3), Start(2, 3, 4, 2), Start(4, 0, 2, 3))))


def test_resuming_far_into_a_run_takes_no_more_work(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A start at pool 10^9 of each lane reads as many blocks and permutes as many places as a start at pool 0."""
    work: list[list[int]] = []
    read, permute = StoreReader.begin, block_order.permute

    def count_reads(self: StoreReader, blocks: Any) -> Any:
        work[-1][0] += len(blocks)
        return read(self, blocks)

    def count_places(indices: Any, size: int, keys: Any) -> Any:
        work[-1][1] += len(indices)
        return permute(indices, size, keys)

    monkeypatch.setattr(StoreReader, "begin", count_reads)
    monkeypatch.setattr(block_order, "permute", count_places)
    # Every block has training cells, so that no pool is skipped.
    full = next(s for s in stores if all(e.n_train == e.n_cells > 60 for e in StoreReader(s).manifest.datasets))
    for pool in (0, 10**9):
        work.append([0, 0])
        lanes = Lanes(StoreReader(full), RowPlan(0, 4, 3, 16, ROW), dict.fromkeys(range(4), (pool, 0)))
        assert len(lanes.take(1)) == 4
    assert work[0] == work[1]
    assert work[0][0] == work[0][1] <= 4 * 3 * 2

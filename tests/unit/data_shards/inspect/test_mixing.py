"""Mixing: many lanes and pools come close to a full shuffle, few do not; on shuffled labels all plans are alike."""

import numpy as np
import pytest

from data_shards.inspect.mixing import Mixing, label_codes, measure_mixing
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from tests.conftest import Atlas
from tests.support.random_stores import write_store

N_CELLS, TYPES = 3000, 10


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    path = tmp_path_factory.mktemp("mixing") / "store"
    write_store(path, [np.zeros(N_CELLS, np.uint8), np.zeros(N_CELLS // 2, np.uint8)], 8)
    return StoreReader(path)


def measure(reader: StoreReader, lanes: int, pool_blocks: int, labels: np.ndarray | None, rows: int = 1) -> Mixing:
    plan = RowPlan(0, lanes, pool_blocks, 64, 60)
    parts = None if labels is None else [labels[:N_CELLS], labels[N_CELLS:]]
    return measure_mixing(reader, plan, rows, 100, parts)[0]


def test_lanes_and_pools_mix_sorted_cells(reader: StoreReader) -> None:
    by_type = np.arange(N_CELLS * 3 // 2) * TYPES // (N_CELLS * 3 // 2)
    few, pools, lanes = (
        measure(reader, n_lanes, pool_blocks, by_type, 24 // n_lanes)
        for n_lanes, pool_blocks in ((1, 1), (1, 16), (24, 16))
    )
    assert few.distance > pools.distance > lanes.distance
    assert few.excess > 2
    assert lanes.excess < 1.15
    # The distance of a step with one type of ten is nine tenths.
    assert measure(reader, 1, 1, by_type).distance == pytest.approx(0.9, abs=0.01)
    # The same for data sets.
    assert measure(reader, 1, 1, None, 24).excess > 2 > 1.2 > measure(reader, 24, 16, None).excess


def test_on_shuffled_labels_every_plan_is_a_full_shuffle(reader: StoreReader) -> None:
    labels = np.random.default_rng(1).integers(0, TYPES, N_CELLS * 3 // 2)
    for lanes, pool_blocks in ((1, 1), (24, 4)):
        assert measure(reader, lanes, pool_blocks, labels, 24 // lanes).excess == pytest.approx(1, abs=0.12)


def test_weights_are_part_of_the_expected_composition(reader: StoreReader) -> None:
    plan = RowPlan(0, 24, 16, 64, 60, {"d1": 0})
    assert measure_mixing(reader, plan, 1, 20)[0].distance == 0


def test_labels_are_the_same_numbers_in_every_data_set(atlas: Atlas) -> None:
    codes = label_codes(StoreReader(atlas.store), "cell_type")
    assert [len(of_set) for of_set in codes] == [150, 41]
    assert set(codes[0]) == set(codes[1]) == {0, 1}

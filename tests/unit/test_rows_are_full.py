"""Rows of the presets: at least 97 % full on real cells, and all lanes on one rank within 1 GiB."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from data_shards.medians import make_medians
from data_shards.pool import Plan, choose_pool_blocks
from data_shards.reader import StoreReader
from data_shards.shards import make_store
from data_shards.store import MAX_BLOCK_CELLS, choose_block_cells
from data_shards.stream import AHEAD_BYTES, Lanes
from gm_train.settings import load_config

PRESET = "configs/genemamba-66m.yaml"


@pytest.fixture(scope="module")
def gut(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gut")
    file = real_data / "scp1884_gut_1020.h5ad"
    make_medians([file], folder / "medians.zarr", say=lambda line: None)
    make_store([file], folder / "medians.zarr", folder / "store.zarr", top_k=2048, say=lambda line: None)
    return folder / "store.zarr"


def test_rows_of_real_cells_are_97_percent_full(gut: Path) -> None:
    """Over whole pools of lanes, first and last rows of a group included."""
    data = load_config([PRESET]).data
    reader = StoreReader(gut)
    plan = Plan(0, data.lanes, choose_pool_blocks(reader.manifest), data.group_cells, data.row_length)
    tokens = rows = cells = 0
    for lane in range(0, data.lanes, 16):
        stream = Lanes(reader, plan, {lane: (0, 0)})
        while stream.positions[lane][0] < 2:
            row = stream.take(1)
            tokens, rows, cells = tokens + len(row.tokens), rows + 1, cells + len(row.lengths)
    assert tokens / (rows * data.row_length) >= 0.97
    assert cells / rows > 1.5


@pytest.mark.parametrize("mean", [30, 250, 723, 725, 1068, 1538, 2048])
def test_all_lanes_on_one_rank_fit_a_gibibyte(mean: int) -> None:
    """Pools, what is read ahead, the cache, and the interpreter with its packages, for cells of any length."""
    data = load_config([PRESET]).data
    n_cells = 100_000_000
    block_cells = choose_block_cells([n_cells], n_cells * mean)
    manifest = SimpleNamespace(
        block_cells=block_cells, n_cells=n_cells, n_tokens=n_cells * mean, n_blocks=[n_cells // block_cells]
    )
    pool_bytes = 2 * choose_pool_blocks(manifest) * block_cells * mean
    assert block_cells <= MAX_BLOCK_CELLS
    assert data.lanes * pool_bytes + AHEAD_BYTES + ((data.cache_mb + 320) << 20) < 1 << 30

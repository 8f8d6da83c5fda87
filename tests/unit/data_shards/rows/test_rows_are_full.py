"""Rows of the presets: at least 97 % full on real cells, and all lanes on one rank within 1 GiB."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan, choose_pool_blocks
from data_shards.rows.store_reader import StoreReader
from gm_train.config.load import load_config
from tests.support.random_stores import write_long_store

PRESET = "configs/genemamba-66m.yaml"


@pytest.fixture(scope="module")
def gut(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gut")
    file = real_data / "scp1884_gut_1020.h5ad"
    make_medians([file], folder / "medians.zarr", say=lambda line: None)
    make_store([file], folder / "medians.zarr", folder / "store.zarr", top_k=2048, say=lambda line: None)
    return folder / "store.zarr"


def test_rows_of_real_cells_are_97_percent_full(gut: Path) -> None:
    """Measured over whole pools of lanes, including the first and last rows of each group."""
    data = load_config(PRESET).data
    reader = StoreReader(gut)
    plan = RowPlan(0, data.lanes, choose_pool_blocks(reader.manifest), data.group_cells, data.row_length)
    tokens = rows = cells = 0
    for lane in range(0, data.lanes, 16):
        stream = Lanes(reader, plan, {lane: (0, 0)})
        while stream.positions[lane][0] < 2:
            row = stream.take(1)
            tokens, rows, cells = tokens + len(row.tokens), rows + 1, cells + len(row.lengths)
    assert tokens / (rows * data.row_length) >= 0.97
    assert cells / rows > 1.5


_PEAK = """
import sys
from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan, choose_pool_blocks
from data_shards.rows.store_reader import StoreReader

def kib(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])

before = kib("VmRSS")
reader = StoreReader(sys.argv[1], int(sys.argv[2]))
plan = RowPlan(0, 192, choose_pool_blocks(reader.manifest), 1024, 2048)
lanes = Lanes(reader, plan, dict.fromkeys(range(192), (0, 0)))
while min(pool for pool, _ in lanes.positions.values()) < 2:
    lanes.take(4)
print(kib("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "data_sets",
    [[(100_000, 30)], [(5_000, 1000)], [(12_000, 250), (1_200, 1900)]],
    ids=["short cells", "long cells", "short and long cells"],
)
def test_all_lanes_on_one_rank_fit_a_gibibyte(tmp_path: Path, data_sets: list[tuple[int, int]]) -> None:
    """Pools, blocks read ahead and the cache, measured in a separate process that reads whole pools of each lane."""
    data = load_config(PRESET).data
    assert (data.lanes, data.group_cells, data.row_length) == (192, 1024, 2048)
    write_long_store(tmp_path / "store", data_sets)
    words = [sys.executable, "-c", _PEAK, str(tmp_path / "store"), str(data.cache_mb << 20)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1 << 20

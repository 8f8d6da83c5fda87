"""The benchmark of loaders: what each loader delivers, rates from turns, and a whole run."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from data_shards.counts.count_file import open_counts
from data_shards.rows.lanes import Lanes
from data_shards.rows.pool import RowPlan
from data_shards.rows.store_reader import StoreReader
from data_shards.store.manifest import TRAIN, VALIDATION, Manifest
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.tokens.vocabulary import PAD
from gm_train.bench.loader import bench_loader, loader_report, loaders
from gm_train.bench.loader.bench_loader import LoaderPlan, measured, with_ratios
from gm_train.bench.loader.loaders import (
    BY_KERNEL,
    BY_ROWS,
    CEILING,
    COUNTS,
    OURS,
    WAYS,
    LoaderCells,
    LoaderRunner,
    chunk_batches,
    cycle_cells,
    own_batches,
    peer_batches,
)
from gm_train.bench.loader.peers import BATCH, PEERS, Peer
from gm_train.bench.rankings import RANKINGS, Batcher, medians_of_columns
from gm_train.cli.main import main
from tests.conftest import Atlas
from tests.support.random_stores import write_store

INSTALLED = [peer for peer in PEERS if not peer.missing()]


@pytest.fixture
def first(atlas: Atlas) -> tuple[Tokenizer, Batcher, sp.csr_matrix, np.ndarray]:
    """The tokenizer, batches of the first file, its counts, and the median of each of its columns."""
    tokenizer = Tokenizer.load(atlas.store)
    with open_counts(atlas.files[0]) as counts:
        columns = tokenizer.bind(counts)
        chunk = next(iter(counts.chunks()))[1]
    return tokenizer, Batcher(tokenizer, columns), chunk, medians_of_columns(tokenizer, columns)


@pytest.mark.parametrize("name", RANKINGS)
def test_every_way_ranks_by_the_same_keys(
    first: tuple[Tokenizer, Batcher, sp.csr_matrix, np.ndarray], name: str
) -> None:
    _, _, counts, medians = first
    ranked = RANKINGS[name](counts, medians, 20)
    for cell, genes in enumerate(ranked):
        row = counts[cell].toarray().ravel()
        keys = (row / medians).astype(np.float32)
        assert len(set(genes.tolist())) == len(genes) == min(20, int((row > 0).sum()))
        np.testing.assert_allclose(keys[genes], np.sort(keys[row > 0])[::-1][:20], rtol=1e-6)


def test_batches_of_peers_are_padded_tokens(first: tuple[Tokenizer, Batcher, sp.csr_matrix, np.ndarray]) -> None:
    tokenizer, batcher, counts, _ = first
    by_rows, by_kernel = batcher.by_rows(counts), batcher.by_kernel(counts)
    assert by_rows.shape == by_kernel.shape == (150, 48)
    tokens = tokenizer.encode(counts, tokenizer_columns(tokenizer, counts))[0]
    np.testing.assert_array_equal(by_kernel[by_kernel != PAD], tokens)
    # Both are the same except for ties; at the end of a long cell they may keep different ones of tied genes.
    key = np.concatenate([[0.0, 0.0], tokenizer.medians])
    columns = tokenizer_columns(tokenizer, counts).numbers + 2
    count_of = np.zeros((150, len(key)))
    count_of[:, columns] = counts.toarray()
    for ids in (by_rows, by_kernel):
        assert np.array_equal(ids == PAD, by_rows == PAD)
    ratios = [
        np.take_along_axis(count_of, ids, 1) / np.where(ids == PAD, 1.0, key[ids]) for ids in (by_rows, by_kernel)
    ]
    np.testing.assert_allclose(*ratios, rtol=1e-6)


def tokenizer_columns(tokenizer: Tokenizer, counts: sp.csr_matrix):  # type: ignore[no-untyped-def]
    from data_shards.counts.gene_ids import GeneReport
    from data_shards.tokens.tokenizer import GeneColumns

    token_of = tokenizer.vocabulary.token_of
    numbers = [token_of.get(f"gene{i:04d}", 1) - 2 for i in range(counts.shape[1])]
    return GeneColumns(np.array(numbers, np.int32), len(numbers), GeneReport("as-is", 0, 0, 0, 0, 0, 0, ()))


def test_our_batches_are_the_packed_rows_of_a_step(atlas: Atlas, tmp_path: Path) -> None:
    manifest = Manifest.load(atlas.store)
    batches = list(islice(own_batches(LoaderCells(atlas.store, None, tmp_path)), 3))
    assert all(batch.slots == 192 * 2048 and 0 < batch.tokens <= batch.slots for batch in batches)
    mean = sum(batch.tokens for batch in batches) / sum(batch.cells for batch in batches)
    assert mean == pytest.approx(manifest.n_tokens / manifest.n_cells, rel=0.05)


def test_the_ceiling_reads_every_token_once_a_pass(atlas: Atlas, tmp_path: Path) -> None:
    manifest = Manifest.load(atlas.store)
    batches = chunk_batches(LoaderCells(atlas.store, None, tmp_path))
    taken = cells = 0.0
    while taken < 2 * manifest.n_tokens:
        batch = next(batches)
        taken, cells = taken + batch.tokens, cells + batch.cells
    assert taken == 2 * manifest.n_tokens
    assert cells == pytest.approx(2 * manifest.n_cells)


@pytest.mark.parametrize("peer", INSTALLED, ids=lambda peer: peer.name)
def test_an_epoch_of_a_peer_is_every_cell_once(atlas: Atlas, tmp_path: Path, peer: Peer) -> None:
    """For installed peers; AnnLoader always is."""
    with open_counts(atlas.files[0]) as counts:
        expected = next(iter(counts.chunks()))[1]
    found = []
    for batch in peer.batches(atlas.files[0], tmp_path):
        assert batch.shape[1] == 80
        assert batch.shape[0] <= BATCH
        found.append(batch.toarray())
        if sum(map(len, found)) >= 150:
            break
    rows = np.concatenate(found)
    assert len(rows) == 150
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected.toarray()[np.lexsort(expected.toarray().T)])
    runner_batch = next(peer_batches(LoaderCells(atlas.store, atlas.files[0], tmp_path), peer.name, BY_ROWS))
    assert runner_batch.cells == 150
    assert runner_batch.slots == 150 * 48
    assert runner_batch.tokens == int(np.minimum(np.diff(expected.indptr), 48).sum())


def test_a_turn_lasts_as_long_as_it_should(atlas: Atlas, tmp_path: Path) -> None:
    runner = LoaderRunner(LoaderCells(atlas.store, None, tmp_path), CEILING, turn_s=0.02)
    assert runner.use(COUNTS) > 0
    turns = runner.steps(3)
    assert all(seconds >= 0.02 and tokens > 0 for seconds, _, tokens, _ in turns)


def test_in_a_cycle_each_lane_comes_to_the_end_of_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only training cells count, whatever their share of the store."""
    plan = RowPlan(seed=0, lanes=6, pool_blocks=8, group_cells=64, row_length=48)
    monkeypatch.setattr(loaders, "default_plan", lambda manifest: plan)
    split = np.where(np.arange(600) % 3 > 0, TRAIN, VALIDATION)
    manifest = write_store(tmp_path / "store", [split, split[:300]], block_cells=16)
    lanes = Lanes(StoreReader(tmp_path / "store"), plan, dict.fromkeys(range(plan.lanes), (0, 0)))
    n_cells = 0
    while n_cells < 20.5 * cycle_cells(manifest):
        n_cells += len(lanes.take(1).lengths)
    # In the middle of a pool: each lane has used up 20.
    assert sum(pool for pool, _ in lanes.positions.values()) == pytest.approx(20 * plan.lanes, rel=0.03)


def test_a_turn_of_ours_is_whole_cycles(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = RowPlan(seed=0, lanes=6, pool_blocks=64, group_cells=64, row_length=128)
    monkeypatch.setattr(loaders, "default_plan", lambda manifest: plan)
    cycle = cycle_cells(Manifest.load(atlas.store))
    runner = LoaderRunner(LoaderCells(atlas.store, None, tmp_path), OURS, turn_s=0.001)
    runner.use(COUNTS)
    for seconds, cells, _, _ in runner.steps(3):
        assert seconds >= 0.001
        assert 0 <= cells % cycle < cycle / 4
        assert cells >= cycle


def test_rates_are_those_of_all_turns_together() -> None:
    """If a loader reads ahead in one turn for two others, its rate is that of all three, not their median."""
    row = measured([(4.0, 30.0, 300, 400), (1.0, 30.0, 300, 400), (1.0, 30.0, 300, 400)])
    assert row["cells_per_s"] == 15.0
    assert row["tokens_per_s"] == 150.0
    assert row["real_tokens"] == 0.75
    assert row["cells_per_s_quartiles"] == [18.75, 30.0]
    rows = [
        {"loader": OURS, "way": COUNTS, "cells_per_s": 30.0},
        {"loader": "other", "way": COUNTS, "cells_per_s": 60.0},
        {"loader": OURS, "way": BY_ROWS, "cells_per_s": 40.0},
        {"loader": "other", "way": BY_ROWS, "cells_per_s": 10.0},
    ]
    assert [row["ours_over"] for row in with_ratios(rows)] == [1.0, 0.5, 1.0, 4.0]


def test_a_whole_run_names_the_peers_that_are_not_installed(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = next(peer for peer in PEERS if peer.name == "AnnLoader")
    gone = Peer("gone", ("no_such_module",), installed.batches)
    inside = Peer("inside", ("no_such_module.inside",), installed.batches)
    monkeypatch.setattr(bench_loader, "PEERS", (installed, gone, inside))
    monkeypatch.setattr(bench_loader, "WAYS", (BY_ROWS,))
    monkeypatch.setattr(loader_report, "WAYS", (BY_ROWS,))
    plan = LoaderPlan(("race",), store=atlas.store, h5ad=atlas.files[0], turns=10, turn_s=0.005, out=tmp_path / "out")
    written = bench_loader.run_bench_loader(plan)
    results = json.loads(written[0].read_text())
    assert {(row["loader"], row["way"]) for row in results["race"]} == {
        (name, BY_ROWS) for name in (OURS, CEILING, "AnnLoader")
    }
    assert all(row["cells_per_s"] > 0 and row["peak_memory"] > 0 for row in results["race"])
    assert [line.split(":")[0] for line in results["left_out"]] == ["mixing", "gone", "inside"]
    text = written[1].read_text()
    for word in ("| gm-train |", "| AnnLoader |", "no_such_module cannot be imported", "rows are", "tensorstore 0."):
        assert word in text


def test_mixing_is_measured_by_lanes_and_blocks(atlas: Atlas, tmp_path: Path) -> None:
    plan = LoaderPlan(("mixing",), store=atlas.store, out=tmp_path / "out")
    written = bench_loader.run_bench_loader(plan)
    rows = json.loads(written[0].read_text())["mixing"]
    assert [row["lanes"] for row in rows] == [192, 8, 192, 8]
    assert rows[0]["pool_blocks"] > rows[2]["pool_blocks"] == 1
    for row in rows:
        for one in row["found"]:
            assert 0 <= one["distance"] <= 1
    assert "| 8 x 1 | 1 |" in written[1].read_text()


def test_simulated_cells_are_sorted_for_mixing_alone(tmp_path: Path) -> None:
    plan = LoaderPlan(("mixing",), n_cells=60, workers=1, out=tmp_path)
    cells = bench_loader._cells(plan, print)
    with open_counts(bench_loader._mixed_store(plan, cells, print).parent / "lzf.h5ad") as counts:
        assert counts.read_obs()["cell_type"].is_monotonic_increasing
    with open_counts(cells.h5ad) as counts:
        assert not counts.read_obs()["cell_type"].is_monotonic_increasing


def test_a_peer_that_failed_is_reported_beside_the_others() -> None:
    row = {"cells_per_s": 10.0, "cells_per_s_quartiles": [9.0, 11.0], "ours_over": 1.0, "real_tokens": 0.97}
    row |= {"first_s": 0.5, "peak_memory": 1 << 30}
    rows = [row | {"loader": OURS, "way": way} for way in WAYS]
    rows += [row | {"loader": "other", "way": way} for way in (COUNTS, BY_KERNEL)]
    text = loader_report._race(rows)
    assert "| other | 10 (9 … 11) | 1.00x | failed | - | 10 (9 … 11) |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--turns", "3"), "--turns 3: nothing is reported from fewer than 10"),
        (("--parts", "rase"), "--parts rase: expected some of race, mixing"),
        (("--store", "nowhere.zarr"), "nowhere.zarr: no such file or folder"),
    ],
)
def test_bad_options_are_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "loader", *words, "--out", str(tmp_path / "out")]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

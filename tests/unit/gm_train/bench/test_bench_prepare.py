"""The benchmark of preparation: its timers, its memory figures, and a whole run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest

from gm_train.bench.measure.footprint import Footprint
from gm_train.bench.prepare import bench_prepare
from gm_train.bench.prepare.bench_prepare import PreparePlan, files_rows, middle
from gm_train.bench.prepare.prepare_report import arithmetic, both_passes
from gm_train.bench.prepare.prepare_runners import (
    FIRST_BATCH,
    KERNEL,
    LOADING,
    READING,
    STEPS,
    MediansRunner,
    PrepareRunner,
    RankRunner,
    ReadRunner,
    ScaleRunner,
    read_counts,
)
from gm_train.bench.rankings import RANKINGS
from gm_train.cli.main import main
from tests.conftest import Atlas


def test_reading_reads_every_count_and_column(atlas: Atlas) -> None:
    with h5py.File(atlas.files[0]) as file:
        n = len(file["X/data"])
    assert read_counts(atlas.files[0]) == 2 * n
    assert ReadRunner(atlas.files[0]).steps(2)[1]["seconds"] > 0


@pytest.mark.parametrize("name", [KERNEL, *RANKINGS])
def test_each_way_to_rank_is_timed(atlas: Atlas, name: str) -> None:
    runner = RankRunner(atlas.files[0], atlas.store, name, n_cells=40)
    runner.use()
    assert len(runner.steps(3)) == 3
    assert min(runner.steps(2)) > 0
    assert runner._n_cells == 40


def test_the_functions_of_medians_add_up(atlas: Atlas, tmp_path: Path) -> None:
    found = MediansRunner(atlas.files[0], tmp_path).run()
    assert found["digests_s"] > 0
    assert found["exact_s"] > 0
    names = list(found["functions"])
    assert any(name.startswith("data_shards.medians.tdigest.") for name in names)
    assert "h5py" in names
    assert not any("/" in name for name in names)
    # The profiled run does the same work as the timed one, with some overhead.
    assert sum(found["functions"].values()) > 0.3 * found["digests_s"]
    assert list(tmp_path.iterdir()) == []


def test_preparation_leaves_nothing_behind(atlas: Atlas, tmp_path: Path) -> None:
    runs = PrepareRunner(atlas.files[0], tmp_path, workers=1).steps(2)
    for run in runs:
        assert run["seconds"] == pytest.approx(run["medians_s"] + run["shards_s"])
        assert run["own_peak"] > 1 << 20
    assert list(tmp_path.iterdir()) == []


_CHILD = """
import subprocess, sys
from gm_train.bench.measure.footprint import Footprint
with Footprint() as footprint:
    subprocess.run([sys.executable, "-c", "import time; held = bytearray(150 << 20); time.sleep(0.5)"], check=True)
print(footprint.own_peak, footprint.child_peak)
"""


def test_the_memory_of_a_child_is_counted_apart_from_our_own() -> None:
    if Footprint.own() is None:
        pytest.skip("the system does not report resident memory")
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
    own, child = map(int, done.stdout.split())
    assert 150 << 20 < child < 200 << 20
    assert own < 150 << 20


def test_ratios_are_those_of_the_middle_runs() -> None:
    runs: dict[str, list[dict[str, Any]] | None] = {
        READING: [{"seconds": 2.0}, {"seconds": 9.0}, {"seconds": 4.0}],
        "gm-train, 1 worker": [
            {"seconds": 8.0, "own_peak": 3},
            {"seconds": 7.0, "own_peak": 2},
            {"seconds": 9.0, "own_peak": 4},
        ],
    }
    rows = files_rows("gzip", 100, 80, runs)
    assert [row["of_reading"] for row in rows] == [1.0, 0.5]
    assert [row["cells_per_s"] for row in rows] == [20.0, 10.0]
    assert rows[1]["own_peak"] == 3
    assert middle([{"seconds": 1.0}, {"seconds": 2.0}])["seconds"] == 2.0


def test_the_extrapolation_uses_the_largest_atlas() -> None:
    """1,000 cells in 8 s by 2 workers are 10^8 in 10^5 * 8 s, and 256 times less by 512 workers."""
    steps = {READING: 6.0, "medians": 8.0, "shards": 4.0, LOADING: 0.01}
    rows = [
        {"cells": cells, "step": step, "seconds": s, "workers": 2, "cells_per_s": cells / s}
        | {"bytes": 2_000_000, "tokens": 10**6, "own_cpu_s": 0.1 + cells / 1000 * s / 100}
        for cells in (10, 1000)
        for step, s in steps.items()
    ]
    assert both_passes(rows) == (
        "Both passes, medians and shards, by 2 workers, run at 50% of the speed of reading at 10 cells, 50% at 1,000; "
        "reading uses one process."
    )
    text = arithmetic(rows)
    # The main process takes a hundredth of the time at any number of workers, plus 0.1 s at any size.
    assert "medians: 52 min of all workers, in parallel with 2.2 h of the main process" in text
    assert "tokens: 26 min of all workers, in parallel with 67 min of the main process" in text
    assert "222.2 h and 111.1 h" in text
    assert "the store: 200 GB" in text
    # 600,000 tokens/s in cells of 1,000 tokens.
    assert "takes 600 cells/s; one loader process delivered 100,000, 167 times as many" in text


def test_every_step_of_the_scale_run_works_and_reports_its_size(tmp_path: Path) -> None:
    rows = {step: ScaleRunner(tmp_path, 60, 1).run(step) for step in STEPS}
    assert rows["simulate"]["bytes"] == sum((tmp_path / name).stat().st_size for name in ("cells.h5ad", "cells.gmt"))
    assert rows["make_shards"]["tokens"] > 0
    # With the default lanes and blocks, each pool of the 192 lanes is the whole store.
    assert rows["load"]["cycles"] == 3
    assert 3 * 192 * 60 <= rows["load"]["handled"] < 3.5 * 192 * 60
    assert rows["start_loader"]["handled"] is None
    assert all(row["seconds"] > 0 and row["own_cpu_s"] > 0 and row["own_peak"] > 1 << 20 for row in rows.values())
    next(tmp_path.glob("store.zarr/cells/tokens/c/*")).write_bytes(b"")
    with pytest.raises(ValueError, match="tokens"):
        ScaleRunner(tmp_path, 60, 1).run("verify")


def test_a_whole_run_writes_figures_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_prepare, "COMPRESSIONS", ("lzf",))
    monkeypatch.setattr(bench_prepare, "RANKINGS", {"numpy argsort": None})
    plan = PreparePlan(("ranking", "files"), n_cells=60, repeats=1, ranked=20, out=tmp_path / "out")
    written = bench_prepare.run_bench_prepare(plan)
    results = json.loads(written[0].read_text())
    assert [row["way"] for row in results["ranking"]] == [KERNEL, "numpy argsort"]
    assert [row["way"] for row in results["files"]] == [READING, "gm-train, 1 worker", "gm-train, 2 workers"]
    assert results["files"][2]["child_peak"] > 100 << 20
    text = written[1].read_text()
    for word in ("Ranking, one core", "of the reading speed", "| lzf | gm-train, 2 workers |", "medians: not run"):
        assert word in text


def test_a_scale_run_leaves_only_its_reports(tmp_path: Path) -> None:
    plan = PreparePlan(("scale",), sizes=(50,), workers=1, out=tmp_path / "out")
    written = bench_prepare.run_bench_prepare(plan)
    rows = json.loads(written[0].read_text())["scale"]
    assert [(row["cells"], row["step"]) for row in rows] == [(50, name) for name in STEPS.values()]
    rates = {row["step"]: row["cells_per_s"] for row in rows}
    assert rates[FIRST_BATCH] is None
    assert rates[LOADING] == pytest.approx(rows[-1]["handled"] / rows[-1]["seconds"])
    assert {path.name for path in plan.out.iterdir()} == {"bench.json", "bench.md"}
    text = written[1].read_text()
    assert "By arithmetic" in text
    assert f"| {FIRST_BATCH} | " in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--parts", "rank"), "--parts rank: expected some of ranking, medians, files, scale"),
        (("--sizes", "100,0"), "--sizes 0: must be at least 1"),
        (("--workers", "0"), "--workers 0: must be at least 1"),
    ],
)
def test_bad_options_are_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "prepare", *words, "--out", str(tmp_path / "out")]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

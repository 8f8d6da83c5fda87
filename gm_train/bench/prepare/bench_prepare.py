"""`gm-train bench prepare`: time ranking, medians, the preparation of files, and atlases of growing size."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from gm_train.bench.atlases import simulated_counts, store_of
from gm_train.bench.measure.process import BenchProcess, call_alone
from gm_train.bench.measure.turns import FEWEST_STEPS, Say, Spread, alternate
from gm_train.bench.prepare import prepare_report
from gm_train.bench.prepare.prepare_runners import (
    KERNEL,
    READING,
    STEPS,
    MediansRunner,
    PrepareRunner,
    RankRunner,
    ReadRunner,
    ScaleRunner,
)
from gm_train.bench.rankings import RANKINGS
from gm_train.bench.results import bench_progress, made_with, write_results
from gm_train.config.check import ConfigError

#: Sections of a report, in order.
PARTS = ("ranking", "medians", "files", "scale")
PACKAGES = ("numpy", "numba", "scipy", "fastdigest", "h5py", "isal", "zarr", "tensorstore", "anndata", "gm-train")
#: CELLxGENE's files have gzip, those of `data simulate` lzf.
COMPRESSIONS = ("gzip", "lzf", "none")

Row = dict[str, Any]


@dataclass(frozen=True)
class PreparePlan:
    """Settings of the whole benchmark.

    Attributes:
        parts: sections to run, from `PARTS`.
        n_cells: cells in all parts except the scale run.
        sizes: cells of each atlas of the scale run.
        repeats: runs of each way to prepare a file.
        ranked: cells that are ranked at once.
        workers: processes, in runs with more than one.
        out: folder for the results and the cells.
        asked: the command line, for the report.
        cores: processes that make the cells; also shown in the report.
    """

    parts: tuple[str, ...] = PARTS
    n_cells: int = 200_000
    sizes: tuple[int, ...] = (100_000, 1_000_000)
    repeats: int = 3
    ranked: int = 2000
    workers: int = 2
    out: Path = Path("runs/bench-prepare")
    asked: tuple[str, ...] = ()
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def check(self) -> None:
        """Raise ConfigError with all problems if the plan cannot be run."""
        problems = [f"--parts {name}: expected some of {', '.join(PARTS)}" for name in self.parts if name not in PARTS]
        for name, value in (
            ("--cells", self.n_cells),
            ("--workers", self.workers),
            *(("--sizes", n) for n in self.sizes),
        ):
            if value < 1:
                problems.append(f"{name} {value}: must be at least 1")
        if problems:
            raise ConfigError(problems)


def quick(plan: PreparePlan) -> PreparePlan:
    """Shorten a plan to about two minutes."""
    return replace(plan, n_cells=3000, sizes=(2000, 8000), repeats=1, ranked=500)


def run_bench_prepare(plan: PreparePlan) -> list[Path]:
    """Run a plan, write `bench.json` and `bench.md` and return their paths.

    Raises:
        ConfigError: the plan cannot be run.
        DataError: nothing could be measured.
    """
    plan.check()
    plan.out.mkdir(parents=True, exist_ok=True)
    with bench_progress() as say:
        results = _measure(plan, say)
    return write_results(plan.out, results, prepare_report.render_prepare)


def _measure(plan: PreparePlan, say: Say) -> Row:
    results: Row = {
        "made": made_with(plan.asked, PACKAGES)
        | {"cells": plan.n_cells, "repeats": plan.repeats, "workers": plan.workers, "cores": plan.cores},
        "left_out": [f"{part}: not run; add it with --parts." for part in PARTS if part not in plan.parts],
    }
    measures: dict[str, Callable[[PreparePlan, Say], Any]] = {
        "ranking": run_ranking,
        "medians": run_medians,
        "files": run_files,
        "scale": run_scale,
    }
    failed = []
    for part in plan.parts:
        try:
            results[part] = measures[part](plan, say)
        except DataError as error:
            failed.append(f"{part}: FAILED: {error}")
    if failed and not any(part in results for part in PARTS):
        raise DataError("; ".join(failed))
    results["left_out"] = failed + results["left_out"]
    return results


def _folder(plan: PreparePlan) -> Path:
    folder = plan.out / f"cells-{plan.n_cells}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_ranking(plan: PreparePlan, say: Say) -> list[Row]:
    """Time the ways to rank the same cells, in alternation, one process and one core each."""
    h5ad = simulated_counts(_folder(plan), plan.n_cells, "lzf", plan.cores, say)
    store = store_of(h5ad, _folder(plan), plan.cores, say)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(BenchProcess(name, None, RankRunner, h5ad, store, name, plan.ranked))
            for name in (KERNEL, *RANKINGS)
        ]
        for worker in workers:
            say(f"ranking: {worker.name}: warming up")
            worker.call("use")
        rates = alternate(workers, FEWEST_STEPS, lambda line: say(f"ranking: {line}"))
    spreads = {name: Spread.of(of_worker or []) for name, of_worker in rates.items()}
    kernel = spreads[KERNEL].median
    return [
        {
            "way": name,
            "cells_per_s": spread.median,
            "cells_per_s_quartiles": [spread.low, spread.high],
            "kernel_over": kernel / spread.median,
        }
        for name, spread in spreads.items()
    ]


def run_medians(plan: PreparePlan, say: Say) -> Row:
    """Time medians and profile them by function."""
    h5ad = simulated_counts(_folder(plan), plan.n_cells, "gzip", plan.cores, say)
    say("medians, profiled")
    timed: Row = call_alone("medians", None, MediansRunner, h5ad, _folder(plan))
    return timed | {"cells": plan.n_cells}


def run_files(plan: PreparePlan, say: Say) -> list[Row]:
    """Time the way from files to shards against reading the files twice, by compression."""
    rows = []
    for compression in COMPRESSIONS:
        h5ad = simulated_counts(_folder(plan), plan.n_cells, compression, plan.cores, say)
        with ExitStack() as stack:
            workers = [stack.enter_context(BenchProcess(READING, None, ReadRunner, h5ad))]
            for n in sorted({1, plan.workers}):
                name = f"gm-train, {n} worker{'s' if n > 1 else ''}"
                args = (h5ad, _folder(plan), n)
                workers.append(stack.enter_context(BenchProcess(name, None, PrepareRunner, *args, has_children=True)))
            for worker in workers:
                say(f"{compression}: {worker.name}: warming up")
                worker.call("use")
            taken = alternate(workers, plan.repeats, lambda line, c=compression: say(f"{c}: {line}"), turn=1)  # type: ignore[misc]
        rows += files_rows(compression, h5ad.stat().st_size, plan.n_cells, taken)
    return rows


def files_rows(compression: str, n_bytes: int, n_cells: int, taken: dict[str, list[Row] | None]) -> list[Row]:
    """Make a row for each contender, with its speed relative to reading.

    Args:
        compression: of the counts.
        n_bytes: size of the file.
        n_cells: cells of the file.
        taken: the runs of each contender, by name.
    """
    middles = {name: middle(runs or []) for name, runs in taken.items()}
    reading = middles[READING]["seconds"]
    return [
        {
            "compression": compression,
            "bytes": n_bytes,
            "way": name,
            "cells_per_s": n_cells / run["seconds"],
            "of_reading": reading / run["seconds"],
            "all_s": [one["seconds"] for one in taken[name] or []],
        }
        | run
        for name, run in middles.items()
    ]


def middle(runs: Sequence[Row]) -> Row:
    """Return the run with median seconds; of an even number of runs, the slower one of the middle two."""
    return sorted(runs, key=lambda run: float(run["seconds"]))[len(runs) // 2]


def run_scale(plan: PreparePlan, say: Say) -> list[Row]:
    """Take atlases of growing size through every step, each step in a fresh process, and remove their files."""
    rows = []
    for size in plan.sizes:
        folder = plan.out / f"scale-{size}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            for step, name in STEPS.items():
                say(f"{size:,} cells: {name}")
                with BenchProcess(name, None, ScaleRunner, folder, size, plan.workers, has_children=True) as worker:
                    timed = worker.call("run", step)
                rate = timed["handled"] and timed["handled"] / timed["seconds"]
                rows.append({"cells": size, "step": name, "workers": plan.workers, "cells_per_s": rate} | timed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return rows

"""`gm-train bench loader`: compare loaders on the same cells."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.store.manifest import Manifest
from gm_train.bench.atlases import simulated_counts, store_of
from gm_train.bench.loader import loader_report
from gm_train.bench.loader.loaders import CEILING, OURS, WAYS, LoaderCells, LoaderRunner, cycle_cells
from gm_train.bench.loader.mixing_table import run_mixing
from gm_train.bench.loader.peers import PEERS
from gm_train.bench.measure.process import BenchProcess
from gm_train.bench.measure.turns import FEWEST_STEPS, Say, alternate
from gm_train.bench.results import bench_progress, made_with, write_results
from gm_train.config.check import ConfigError

PARTS = ("race", "mixing")
PACKAGES = (
    "tensorstore",
    "zarr",
    "numpy",
    "numba",
    "h5py",
    "anndata",
    "annbatch",
    "zarrs",
    "scDataset",
    "bionemo-scdl",
    "tiledbsoma",
    "tiledbsoma-ml",
    "torch",
    "gm-train",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class LoaderPlan:
    """Settings of the whole benchmark.

    Attributes:
        parts: sections to run, from `PARTS`.
        n_cells: cells to simulate if neither `store` nor `h5ad` is given.
        compression: compression of the simulated counts.
        store: the user's token store.
        h5ad: the user's counts; a store is made from them if none is given.
        turns: timed turns of each loader, in alternation.
        turn_s: least seconds of a turn; our own loader takes whole cycles of its pools.
        out: folder for the results and the cells.
        asked: the command line, for the report.
        workers: processes that simulate and prepare cells.
    """

    parts: tuple[str, ...] = PARTS
    n_cells: int = 50_000
    compression: str = "none"
    store: Path | None = None
    h5ad: Path | None = None
    turns: int = 12
    turn_s: float = 0.5
    out: Path = Path("runs/bench-loader")
    asked: tuple[str, ...] = ()
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def check(self) -> None:
        """Raise ConfigError with all problems if the plan cannot be run or would not be worth reporting."""
        problems = [f"--parts {name}: expected some of {', '.join(PARTS)}" for name in self.parts if name not in PARTS]
        if self.turns < FEWEST_STEPS:
            problems.append(f"--turns {self.turns}: nothing is reported from fewer than {FEWEST_STEPS} turns")
        if self.n_cells < 1:
            problems.append(f"--cells {self.n_cells}: must be at least 1")
        if problems:
            raise ConfigError(problems)


def quick(plan: LoaderPlan) -> LoaderPlan:
    """Shorten a plan to a minute or two."""
    return replace(plan, n_cells=5000, turns=FEWEST_STEPS, turn_s=0.1)


def run_bench_loader(plan: LoaderPlan) -> list[Path]:
    """Run a plan, write `bench.json` and `bench.md` and return their paths.

    Raises:
        ConfigError: the plan cannot be run.
        DataError: the store or the cells cannot be read.
    """
    plan.check()
    plan.out.mkdir(parents=True, exist_ok=True)
    with bench_progress() as say:
        results = _measure(plan, say)
    return write_results(plan.out, results, loader_report.render_loader)


def _measure(plan: LoaderPlan, say: Say) -> Row:
    cells = _cells(plan, say)
    manifest = Manifest.load(cells.store)
    results: Row = {
        "made": made_with(plan.asked, PACKAGES)
        | {"turns": plan.turns, "turn_s": plan.turn_s, "cores": len(os.sched_getaffinity(0))},
        "cells": {
            "simulated": plan.store is None and plan.h5ad is None,
            "cells": manifest.n_cells,
            "mean_tokens": manifest.n_tokens / manifest.n_cells,
            "top_k": manifest.top_k,
            "of_a_cycle": cycle_cells(manifest),
            "counts": None if cells.h5ad is None else cells.h5ad.name,
        },
        "left_out": [f"{part}: not run; add it with --parts." for part in PARTS if part not in plan.parts],
    }
    if "race" in plan.parts:
        results["race"], left_out = race(plan, cells, say)
        results["left_out"] += left_out
    if "mixing" in plan.parts:
        results["mixing"] = run_mixing(_mixed_store(plan, cells, say), say)
    return results


def _cells(plan: LoaderPlan, say: Say) -> LoaderCells:
    folder = plan.out / f"cells-{plan.n_cells}"
    h5ad = plan.h5ad
    if plan.h5ad is None and plan.store is None:
        h5ad = simulated_counts(folder, plan.n_cells, plan.compression, plan.workers, say)
    elif plan.h5ad is not None:
        # Peers keep their copies of a file under its name.
        folder = plan.out / f"cells-{plan.h5ad.stem}"
    folder.mkdir(parents=True, exist_ok=True)
    if plan.store is not None:
        return LoaderCells(plan.store, h5ad, folder)
    assert h5ad is not None
    return LoaderCells(store_of(h5ad, folder, plan.workers, say), h5ad, folder)


def _mixed_store(plan: LoaderPlan, cells: LoaderCells, say: Say) -> Path:
    """The user's store as it is; otherwise a store of simulated cells sorted by type, the worst case."""
    if plan.store is not None or plan.h5ad is not None:
        return cells.store
    folder = plan.out / f"sorted-{plan.n_cells}"
    folder.mkdir(exist_ok=True)
    h5ad = simulated_counts(folder, plan.n_cells, "lzf", plan.workers, say, sort=True)
    return store_of(h5ad, folder, plan.workers, say)


def race(plan: LoaderPlan, cells: LoaderCells, say: Say) -> tuple[list[Row], list[str]]:
    """Time all installed loaders, in alternation, in each of the ways.

    Args:
        plan: turns and their length.
        cells: the cells to load.
        say: takes progress lines.

    Returns:
        A row for each loader and way; and sentences about what was left out.
    """
    names = [OURS, CEILING]
    left_out = []
    for peer in PEERS:
        if cells.h5ad is None:
            left_out.append(f"{peer.name}: reads counts, but only a store was given: add --h5ad.")
        elif missing := peer.missing():
            left_out.append(f"{peer.name}: not installed ({', '.join(missing)} cannot be imported).")
        else:
            names.append(peer.name)
    rows: list[Row] = []
    with ExitStack() as stack:
        # Threads stay at their defaults, as in one loader process; TensorStore decodes chunks in threads of its own.
        workers = [
            stack.enter_context(BenchProcess(name, None, LoaderRunner, cells, name, plan.turn_s)) for name in names
        ]
        for way in WAYS:
            waited = {}
            for worker in list(workers):
                say(f"{way}: {worker.name}: the first batch")
                try:
                    waited[worker.name] = worker.call("use", way)
                except DataError as error:
                    if worker.name in (OURS, CEILING):
                        raise
                    left_out.append(f"{worker.name}: failed at {way}: {_first_line(error)}")
                    workers.remove(worker)
            taken = alternate(workers, plan.turns, lambda line, way=way: say(f"{way}: {line}"))  # type: ignore[misc]
            for worker in workers:
                row = {"loader": worker.name, "way": way, "first_s": waited[worker.name]}
                rows.append(row | measured(taken[worker.name] or []) | {"peak_memory": worker.call("peak_memory")})
    return with_ratios(rows), left_out


def measured(turns: Sequence[tuple[float, float, int, int]]) -> Row:
    """Compute rates over all turns together, and quartiles of the rates of single turns.

    The rates are those of all turns together since a loader may read ahead in one turn for the next.

    Args:
        turns: seconds, cells, tokens and slots of each turn.
    """
    seconds, cells, tokens, slots = (sum(column) for column in zip(*turns, strict=True))
    low, high = np.percentile([of_turn[1] / of_turn[0] for of_turn in turns], [25, 75]).tolist()
    return {
        "cells_per_s": cells / seconds,
        "cells_per_s_quartiles": [low, high],
        "tokens_per_s": tokens / seconds,
        "real_tokens": tokens / slots,
        "turns": [list(turn) for turn in turns],
    }


def with_ratios(rows: list[Row]) -> list[Row]:
    """Add `ours_over` to rows: our cells/s divided by those of the loader, in the same way."""
    ours = {row["way"]: row["cells_per_s"] for row in rows if row["loader"] == OURS}
    return [row | {"ours_over": ours[row["way"]] / row["cells_per_s"]} for row in rows]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

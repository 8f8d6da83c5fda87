"""Compare plans with real runs on this machine, in turns: seconds of a step, and memory."""

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gm_train.bench.measure.process import BenchProcess
from gm_train.bench.model.measured_step import measure_step
from gm_train.bench.plan.real_run import RealRun
from gm_train.bench.results import bench_progress, made_with, write_results
from gm_train.bench.tables import mebibytes, seconds, table, versions
from gm_train.checkpoint.first_start import fix_rows_per_lane
from gm_train.config.schema import Config
from gm_train.plan.make_plan import make_plan
from gm_train.plan.store_facts import read_store_facts
from gm_train.ranks.ranks import Ranks

_PACKAGES = ("torch", "lightning", "gm-train")
Row = dict[str, Any]


def run_bench_plan(config: Config, turns: int, steps: int, out: Path, asked: Sequence[str]) -> list[Path]:
    """Plan a run from a few measured steps and take real steps of it, in turns; write `bench.json` and `bench.md`.

    Args:
        config: of a run on one rank, with a store.
        turns: how often both are done; each time in processes of their own.
        steps: timed steps of a real run.
        out: folder for the results; made if it is missing.
        asked: the command line after `gm-train`.

    Returns:
        The paths of both files.

    Raises:
        DataError: the store cannot be read, or a process failed.
    """
    fix_rows_per_lane(config, 1, None)
    vocabulary = read_store_facts(config).vocabulary_size
    threads = len(os.sched_getaffinity(0))
    found: list[Row] = []
    out.mkdir(parents=True, exist_ok=True)
    with bench_progress() as say, tempfile.TemporaryDirectory(dir=out) as folder:
        for turn in range(turns):
            say(f"turn {turn + 1} of {turns}: measuring for the plan")
            plan = make_plan(config, 1, 1, measured=measure_step(config, vocabulary, Ranks()))
            say(f"turn {turn + 1} of {turns}: training")
            with BenchProcess("run", threads, RealRun, config, f"{folder}/{turn}", steps, has_children=True) as run:
                real = run.call("run")
            found.append(real | {"planned_s": plan.step_s, "planned_bytes": plan.memory.total})
    results = {"made": made_with(asked, _PACKAGES), "turns": found, "rows": config.data.step_rows}
    return write_results(out, results, render)


def render(results: Row) -> str:
    """The comparison as Markdown."""
    made, turns = results["made"], results["turns"]
    ratios = sorted(turn["planned_s"] / turn["step_s"] for turn in turns)
    planned, real = (statistics.median(turn[key] for turn in turns) for key in ("planned_s", "step_s"))
    rows = [["a step", seconds(planned), seconds(real), f"{statistics.median(ratios):.2f}"]]
    peaks = [turn["peak"] for turn in turns if turn["peak"] is not None]
    need = turns[0]["planned_bytes"]
    if peaks:
        peak = int(statistics.median(peaks))
        rows.append(["memory, without the loader's", mebibytes(need), mebibytes(peak), f"{need / peak:.2f}"])
    return "\n".join(
        [
            "# A plan beside a real run",
            "",
            f"{made['date']}, `{made['command']}`, {made['cpu']}; {versions(made['packages'], made['git'])}.",
            "",
            table(["medians", "plan", "run", "plan / run"], rows),
            "",
            f"{len(turns)} turns; the ratios of a step lie in {ratios[0]:.2f} … {ratios[-1]:.2f}.",
            "",
        ]
    )

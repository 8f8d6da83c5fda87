"""`gm-train bench gpu`: run the parts one after another within a time budget, and write what is known after each."""

import json
import shutil
import time
from pathlib import Path

import torch

from data_shards.errors import DataError
from gm_train.bench.gpu.gpu_page import render_gpu
from gm_train.bench.gpu.gpu_plan import PARTS, READY, GpuPart, GpuPlan, limit_of, sizes_on
from gm_train.bench.gpu.part_process import part_command, part_environment, run_limited
from gm_train.bench.gpu.scene import Row
from gm_train.bench.model.contenders import GENEMAMBA
from gm_train.bench.model.throughput_picture import draw_throughput
from gm_train.bench.results import bench_progress, made_with, write_results

_PACKAGES = ("torch", "triton", "mamba-ssm", "lightning", "numpy", "gm-train")
#: Seconds kept back for the page itself, and the least that a part is started with.
_RESERVE, _LEAST = 10.0, 5.0


def run_bench_gpu(plan: GpuPlan) -> tuple[list[Path], bool]:
    """Run all parts and write `gpu.json`, `gpu.md` and, after a race, `gpu.png`; each is written again after each part.

    Returns:
        The paths of the files, and whether every part ended as it should.

    Raises:
        OptionError: the plan cannot be run.
        DataError: no GPU is visible, and it is no rehearsal.
    """
    plan.check()
    started = time.monotonic()
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise DataError(
            f"no GPU is visible to PyTorch (torch {torch.__version__}, CUDA {torch.version.cuda}). "
            "--rehearse runs all parts at tiny sizes on the CPU, which says nothing about a GPU"
        )
    _clear(plan)
    parts = tuple(part for part in PARTS if part.name in plan.names)
    results: Row = {
        "made": made_with(plan.asked, _PACKAGES),
        "rehearsal": plan.device == "cpu",
        "minutes": plan.minutes,
        "parts": {part.name: {"state": "not run", "why": "it was not its turn yet"} for part in parts},
    }
    paths = write_results(plan.out, results, render_gpu, "gpu")
    with bench_progress() as progress:
        for i, part in enumerate(parts):
            left = plan.minutes * 60 - _RESERVE - (time.monotonic() - started)
            limit = limit_of(parts[i:], max(0.0, left))
            progress(f"{part.title}: up to {limit:.0f} s")
            results["parts"][part.name] = _run(part, plan, limit)
            results["made"]["wall_s"] = time.monotonic() - started
            paths = write_results(plan.out, results, render_gpu, "gpu")
    race = results["parts"].get("race", {}).get("results", {})
    if len({row["workload"] for row in race.get("race", []) if "tokens_per_s" in row}) > 1:
        paths.append(_draw(results, race, plan.out / "gpu.png"))
    return paths, all(part["state"] == "done" for part in results["parts"].values())


def _clear(plan: GpuPlan) -> None:
    """Remove what earlier calls left of the parts that run now, and cells of other sizes."""
    (plan.out / "parts").mkdir(parents=True, exist_ok=True)
    for name in plan.names:
        for ending in ("json", "log"):
            (plan.out / "parts" / f"{name}.{ending}").unlink(missing_ok=True)
    if "losses" in plan.names:
        shutil.rmtree(plan.out / "runs", ignore_errors=True)
    ready = plan.out / READY
    if ready.exists() and ready.read_text() != repr(sizes_on(plan.device)):
        ready.unlink()


def _run(part: GpuPart, plan: GpuPlan, limit: float) -> Row:
    """Run one part and return how it ended, with its results so far."""
    for maker, needed in part.needs:
        if not (plan.out / needed).exists():
            return {"state": "not run", "why": f"{needed} is missing, which the part {maker} makes"}
    if limit < _LEAST:
        return {"state": "not run", "why": f"only {limit:.1f} s of --minutes {plan.minutes:g} were left for it"}
    log = plan.out / "parts" / f"{part.name}.log"
    ended = run_limited(part_command(part.name, plan.out, plan.device), log, limit, part_environment(plan.device))
    path = plan.out / "parts" / f"{part.name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    state = "wrong" if ended.state == "done" and found.get("problems") else ended.state
    outcome: Row = {"state": state, "seconds": ended.seconds, "limit_s": limit, "results": found}
    return outcome | ({"tail": ended.tail} if ended.tail else {})


def _draw(results: Row, race: Row, path: Path) -> Path:
    machine = results["parts"].get("machine", {}).get("results", {})
    device = "REHEARSAL ON A CPU" if results["rehearsal"] else machine.get("device", {}).get("name", "a GPU")
    made = {"device": device, "precision": "bf16", "threads": 0}
    draw_throughput({"made": made, "models": {GENEMAMBA: race["models"][GENEMAMBA]}} | race, path)
    return path

"""The part `losses`: ten training steps with `gm-train fit` on the device, beside the same steps on the CPU."""

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_shards.errors import DataError
from gm_train.bench.gpu.gpu_cells import ATLAS, FIT_STORE
from gm_train.bench.gpu.gpu_plan import TRAINED
from gm_train.bench.gpu.scene import Row, Scene, say

STEPS = 10
_CPU = "runs/cpu"
#: Run directory, settings, and the largest relative differences from the CPU in fp32: of a loss, and of the first
#: gradient's norm. On a CPU, ten steps of 24 x 512 in bf16 are off by 7e-4 and 3e-3.
_RUNS = (
    ("runs/fp32", ("trainer.precision=fp32",), (5e-4, 1e-3)),
    (TRAINED, ("trainer.precision=bf16",), (5e-3, 2e-2)),
    ("runs/bf16-compiled", ("trainer.precision=bf16", "trainer.compile=true"), (5e-3, 2e-2)),
)


def compare_losses(scene: Scene) -> None:
    """Keep the losses of each run, and their largest relative difference from the CPU's."""
    results: Row = {"rows": scene.sizes.fit_rows, "length": scene.sizes.fit_length, "runs": {}, "problems": []}
    # All at the same time: they mostly start and compile, and no speed is taken from them.
    with ThreadPoolExecutor() as pool:
        on_cpu = pool.submit(scene.command, *fit_words(scene, _CPU, "trainer.precision=fp32"), on_cpu=True)
        running = {
            folder: pool.submit(scene.command, *fit_words(scene, folder, *settings)) for folder, settings, _ in _RUNS
        }
        _, seconds = on_cpu.result()
        expected = read_steps(scene.out / _CPU)
        results["cpu"] = facts_of(expected, seconds)
        scene.keep(results)
        for folder, _, limits in _RUNS:
            name = Path(folder).name
            try:
                _, seconds = running[folder].result()
            except DataError as error:
                results["problems"].append(f"{name}: {error}")
                scene.keep(results)
                continue
            rows = read_steps(scene.out / folder)
            off = [largest_difference(rows, expected), first_gradient_difference(rows, expected)]
            results["runs"][name] = facts_of(rows, seconds) | {"off": off, "limits": list(limits)}
            say(f"{name}: losses off by {off[0]:.1e}, the first gradient's norm by {off[1]:.1e}")
            for what, value, limit in zip(("a loss", "the first gradient's norm"), off, limits, strict=True):
                if not value < limit:
                    results["problems"].append(f"{name}: {what} is off by {value:.1e}, more than {limit:.0e}")
            if read_order(rows) != read_order(expected):
                results["problems"].append(f"{name}: it has read other cells than the CPU")
            scene.keep(results)


def fit_words(scene: Scene, folder: str, *settings: str, steps: int = STEPS) -> list[str]:
    """Return the words of `gm-train fit` for a run of ten steps, of which `steps` are taken."""
    sizes, cells = scene.sizes, scene.cells
    return [
        "fit", *sizes.model, f"run.dir={scene.out / folder}", f"data.store={cells / FIT_STORE}",
        f"data.lanes={sizes.fit_rows}", "data.rows_per_lane=1", f"data.row_length={sizes.fit_length}",
        "data.pool_blocks=2",
        f"objective.pathways={(cells / ATLAS).with_suffix('.gmt')}", "optim.warmup_steps=2",
        f"optim.schedule_steps={STEPS}", f"trainer.max_steps={steps}", "trainer.validate_every_steps=0",
        "tracking.loggers=[]", *settings,
    ]  # fmt: skip


def read_steps(run: Path) -> list[Row]:
    """Read the records of a run's steps."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def facts_of(rows: list[Row], seconds: float) -> Row:
    """Return the losses of a run, the seconds of its first step and of the median later one, and of the command."""
    return {
        "losses": [row["loss"] for row in rows],
        "first_step_s": rows[0]["step_s"],
        "step_s": statistics.median(row["step_s"] for row in rows[1:]),
        "seconds": seconds,
    }


def largest_difference(rows: list[Row], expected: list[Row]) -> float:
    """Return the largest relative difference of a loss; infinity for other steps, or a loss that is not a number."""
    if [row["step"] for row in rows] != [row["step"] for row in expected]:
        return float("inf")
    pairs: list[tuple[float | None, float | None]] = [
        (row["loss"], right["loss"]) for row, right in zip(rows, expected, strict=True)
    ]
    return max(
        float("inf") if loss is None or right is None else abs(loss - right) / abs(right) for loss, right in pairs
    )


def first_gradient_difference(rows: list[Row], expected: list[Row]) -> float:
    """Return the relative difference of the first gradient's norm; infinity if one is not a number."""
    norm, right = (found[0]["grad_norm"] for found in (rows, expected))
    return float("inf") if norm is None or right is None else float(abs(norm - right) / right)


def read_order(rows: list[Row]) -> list[str]:
    """Return the hash of the samples of each step."""
    return [row["sample_hash"] for row in rows]

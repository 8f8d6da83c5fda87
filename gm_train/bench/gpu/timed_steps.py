"""The parts that time training steps: `race`, `ladder`, `profile` and `roofline`."""

import json
from dataclasses import asdict

from data_shards.tokens.vocabulary import Vocabulary
from gm_train.bench.gpu.gpu_cells import timed_stores
from gm_train.bench.gpu.scene import Row, Scene, say
from gm_train.bench.measure.peaks import Peaks
from gm_train.bench.model import sections
from gm_train.bench.model.bench_model import describe_models
from gm_train.bench.model.contenders import GENEMAMBA, TRANSFORMER, Contender, with_trainer
from gm_train.bench.model.model_plan import ROW
from gm_train.bench.model.model_report import crossover
from gm_train.bench.traffic.traffic import kernels_to_count, layer_traffic

#: Parts of a profile, and the parts of a layer's traffic that they contain.
SAME_PART = {
    "matmul": "projections",
    "convolution": "convolution",
    "scan": "scan",
    "norm and gate": "gated norm",
    "aggregation": "gate",
}


def race_lengths(scene: Scene) -> None:
    """Keep the figures of every contender, one length of cells after another."""
    plan, stores = scene.plan(scene.sizes.race_tokens), timed_stores(scene)
    size = Vocabulary.load(stores.deep / "vocabulary.json").size
    models, peaks = describe_models(plan, size), known_peaks(scene)

    def keep(rows: list[Row]) -> None:
        for row in rows:
            if "flops_per_s" in row:
                row["mfu"] = row["flops_per_s"] / peaks.flops
        meeting = crossover(rows, GENEMAMBA, TRANSFORMER)
        scene.keep({"tokens_per_step": plan.tokens_per_step, "models": models, "race": rows, "crossover": meeting})

    keep(sections.run_race(plan, stores, say, keep))


def climb_ladder(scene: Scene) -> None:
    """Keep the rungs on cells of natural lengths, then those on full rows."""
    plan = scene.plan(scene.sizes.ladder_tokens)

    def keep(ladder: dict[str, list[Row]]) -> None:
        scene.keep({"tokens_per_step": plan.tokens_per_step, "ladder": ladder})

    keep(sections.run_ladder(plan, timed_stores(scene), say, keep))


def profile_parts(scene: Scene) -> None:
    """Keep the seconds of a step by part, and what a layer moves and launches by part."""
    plan = scene.plan(scene.sizes.step_tokens)
    results: Row = {"tokens_per_step": plan.tokens_per_step, "layers": plan.config.model.n_layers}
    results["profile"] = sections.run_profile(plan, timed_stores(scene), say)
    scene.keep(results)
    # mamba_ssm's kernels are counted where the package is installed; then they also run on a GPU.
    kernel = kernels_to_count()[-1 if scene.device == "cuda" else 0]
    say(f"counting bytes and launches of a layer with model.kernel={kernel}")
    parts = layer_traffic(plan.config.model, plan.tokens_per_step, "bf16", kernel)
    results["traffic"] = {
        "kernel": kernel,
        "parts": [{"part": part.part, "launches": part.launches, "bytes": part.n_bytes} for part in parts],
    }
    scene.keep(results)


def compare_with_roofline(scene: Scene) -> None:
    """Keep tokens/s of whole steps, not compiled and compiled, and the time of each kernel beside its roofline."""
    plan, stores, peaks = scene.plan(scene.sizes.step_tokens), timed_stores(scene), known_peaks(scene)
    load = sections.workload(plan, stores.deep, ROW)
    results: Row = {"tokens_per_step": load.rows * load.row_length, "peaks": asdict(peaks), "steps": []}

    def take_steps(name: str, compiled: bool) -> None:
        racer = Contender(name, with_trainer(plan.config, compile=compiled))
        results["steps"] += sections.race([racer], {f"{ROW}": load}, plan, say)
        scene.keep(results)

    take_steps("not compiled", False)
    results["kernels"] = sections.run_kernels(plan, stores, peaks, say)
    results["roofline_tokens_per_s"] = results["tokens_per_step"] / least_step_seconds(results["kernels"])
    scene.keep(results)
    if scene.sizes.compiled:
        take_steps("compiled", True)


def least_step_seconds(kernels: list[Row]) -> float:
    """Return the least seconds of a step: the sum over all kernels of their rooflines."""
    return sum(float(row["least_s"]) * int(row["count"]) for row in kernels)


def known_peaks(scene: Scene) -> Peaks:
    """Return the peaks that the part `machine` has measured, or measure them now."""
    path = scene.out / "parts" / "machine.json"
    found = json.loads(path.read_text()).get("peaks") if path.exists() else None
    return Peaks(**found) if found else sections.measure_peaks(scene.plan(ROW), say)

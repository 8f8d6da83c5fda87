"""`gm-train bench model`: run the sections one after another and write the report."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.store.manifest import Manifest
from data_shards.tokens.vocabulary import Vocabulary
from gm_train.bench.measure.process import OutOfMemory
from gm_train.bench.measure.turns import Say
from gm_train.bench.model import layer_runner, sections
from gm_train.bench.model.contenders import GENEMAMBA, MIXER, PUBLISHED, TRANSFORMER, contenders
from gm_train.bench.model.model_plan import ModelPlan
from gm_train.bench.model.model_report import crossover, render_model
from gm_train.bench.model.throughput_picture import draw_throughput
from gm_train.bench.model.workload import Stores, simulated_stores
from gm_train.bench.results import bench_progress, made_with, write_results
from gm_train.model.kernels.scan_kernels import kernel_of
from gm_train.plan.model_size import n_parameters

_DEEP_CELLS = {"cpu": 128, "cuda": 512}
_MEASURED = ("race", "layer", "ladder", "options", "kernels", "profile", "loss_memory")
_PACKAGES = ("torch", "lightning", "triton", "mamba-ssm", "transformers", "numpy", "gm-train")


def run_bench_model(plan: ModelPlan) -> list[Path]:
    """Run a plan and write `bench.json`, `bench.md` and, after a race, `bench.png`.

    Returns:
        The paths of the files.

    Raises:
        ConfigError: the plan cannot be run.
        DataError: no GPU, no store, too little memory, or a contender that fails.
    """
    plan.check()
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise DataError("no GPU is visible to PyTorch")
    started = time.perf_counter()
    plan.out.mkdir(parents=True, exist_ok=True)
    with bench_progress() as say:
        results = _measure(plan, say)
    results["made"]["wall_s"] = time.perf_counter() - started
    paths = write_results(plan.out, results, render_model)
    if len({row["workload"] for row in results.get("race", [])}) > 1:
        paths.append(plan.out / "bench.png")
        draw_throughput(results, paths[-1])
    return paths


def _measure(plan: ModelPlan, say: Say) -> dict[str, Any]:
    stores = _stores(plan, say)
    store = plan.store or stores.deep
    size = Vocabulary.load(store / "vocabulary.json").size
    results: dict[str, Any] = {
        "made": _made(plan),
        "models": describe_models(plan, size),
        "stores": [_described(path, plan) for path in ([plan.store] if plan.store else [stores.deep, stores.natural])],
    }
    failed: list[str] = []

    def attempt(part: str, measure: Callable[[], Any]) -> None:
        """Run one part; if it fails, note it and keep the results of the others."""
        try:
            results[part] = measure()
        except (OutOfMemory, DataError) as error:
            failed.append(f"{part}: FAILED: {error}")

    before = sections.measure_peaks(plan, say)
    if "race" in plan.parts:
        attempt("race", lambda: sections.run_race(plan, stores, say))
        results["crossover"] = crossover(results.get("race", []), GENEMAMBA, TRANSFORMER)
        if MIXER in plan.names and layer_runner.is_installed():
            attempt("layer", lambda: sections.run_layer(plan, say))
    if "ladder" in plan.parts:
        attempt("ladder", lambda: sections.run_ladder(plan, stores, say))
    if "options" in plan.parts:
        attempt("options", lambda: sections.run_options(plan, stores, say))
    after = sections.measure_peaks(plan, say)
    peaks = before.best(after)
    results["peaks"] = {"before": asdict(before), "after": asdict(after), "used": asdict(peaks)}
    for row in results.get("race", []):
        if "flops_per_s" in row:
            row["mfu"] = row["flops_per_s"] / peaks.flops
    if "kernels" in plan.parts:
        attempt("kernels", lambda: sections.run_kernels(plan, stores, peaks, say))
    if "profile" in plan.parts:
        attempt("profile", lambda: sections.run_profile(plan, stores, say))
    if "loss-memory" in plan.parts:
        attempt("loss_memory", lambda: sections.run_loss_memory(plan, say))
    if failed and not any(part in results for part in _MEASURED):
        raise DataError("; ".join(failed))
    results["left_out"] = failed + plan.left_out()
    return results


def _stores(plan: ModelPlan, say: Say) -> Stores:
    if plan.store is not None:
        Manifest.load(plan.store)  # fail on an unreadable store before cells are simulated
        if set(plan.parts) <= {"race", "loss-memory"}:
            return Stores(plan.store, plan.store, Path())
    say("simulating cells")
    # A GPU takes more cells per step.
    n_cells = _DEEP_CELLS[plan.device]
    return simulated_stores(plan.out / f"cells-{n_cells}", n_cells)


def _made(plan: ModelPlan) -> dict[str, Any]:
    """Date, command, versions, hardware and settings."""
    return {
        **made_with(plan.asked, _PACKAGES),
        "threads": plan.threads,
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else "cpu",
        "precision": plan.config.trainer.precision,
        "compile": plan.config.trainer.compile,
        "steps": plan.steps,
        "warmup": plan.warmup,
        "tokens_per_step": plan.tokens_per_step,
    }


def describe_models(plan: ModelPlan, vocabulary_size: int) -> dict[str, Any]:
    """Return sizes, parameters and kernel of each model of the race, by name."""
    device = torch.device(plan.device)
    ours = n_parameters(plan.config.model, vocabulary_size)
    by_name = {}
    for racer in contenders(plan.config, (GENEMAMBA, PUBLISHED, TRANSFORMER), vocabulary_size):
        kernel, why = kernel_of(racer.config, device)
        n = n_parameters(racer.config.model, vocabulary_size)
        by_name[racer.name] = {
            "model": asdict(racer.config.model),
            "parameters": n,
            "over_genemamba": n / ours,
            "kernel": kernel,
            "why": why,
        }
    return by_name


def _described(store: Path, plan: ModelPlan) -> dict[str, Any]:
    manifest = Manifest.load(store)
    return {
        "simulated": plan.store is None,
        "name": store.name,
        "cells": manifest.n_cells,
        "mean_tokens": manifest.n_tokens / max(1, manifest.n_cells),
        "vocabulary": manifest.n_genes + 2,
        "hash": manifest.hash,
    }

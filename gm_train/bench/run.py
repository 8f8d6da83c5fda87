"""A whole benchmark: its sections one after another, and what they were made with."""

import datetime
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_shards.errors import DataError
from data_shards.manifest import Manifest
from data_shards.vocabulary import Vocabulary
from gm_train.announce import kernel_of
from gm_train.bench import layer, sections
from gm_train.bench.cells import Stores, simulated_stores
from gm_train.bench.contenders import GENEMAMBA, MIXER, PUBLISHED, TRANSFORMER, contenders, n_parameters
from gm_train.bench.crossover import crossover
from gm_train.bench.picture import draw
from gm_train.bench.plan import Plan
from gm_train.bench.race import Say
from gm_train.bench.report import render
from gm_train.bench.worker import OutOfMemory
from gm_train.provenance import git_revision, packages

_LINE_EVERY_S = 15.0  # between two lines of progress where there is no terminal
_DEEP_CELLS = {"cpu": 128, "cuda": 512}
_MEASURED = ("race", "layer", "ladder", "options", "kernels", "profile", "loss_memory")
_PACKAGES = ("torch", "lightning", "triton", "mamba-ssm", "causal-conv1d", "transformers", "numpy", "gm-train")


def run(plan: Plan) -> list[Path]:
    """Run a plan and write `bench.json`, `bench.md` and, after a race, `bench.png`.

    Returns:
        What was written.

    Raises:
        ConfigError: a plan that cannot be run.
        DataError: no store, not enough memory, or a contender that fails.
    """
    plan.check()
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise DataError("no GPU is visible to PyTorch")
    started = time.perf_counter()
    plan.out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=0, bar_format="{desc}  [{elapsed}]", disable=None) as line:
        last = -_LINE_EVERY_S

        def say(text: str) -> None:
            nonlocal last
            line.set_description_str(text)
            elapsed = time.perf_counter() - started
            if line.disable and elapsed - last > _LINE_EVERY_S:
                last = elapsed
                print(f"{elapsed:.0f} s: {text}", file=sys.stderr, flush=True)

        results = _measure(plan, say)
    results["made"]["wall_s"] = time.perf_counter() - started
    written = {"bench.json": json.dumps(results, indent=1) + "\n", "bench.md": render(results)}
    for name, text in written.items():
        (plan.out / name).write_text(text)
    paths = [plan.out / name for name in written]
    if len({row["workload"] for row in results.get("race", [])}) > 1:
        paths.append(plan.out / "bench.png")
        draw(results, paths[-1])
    return paths


def _measure(plan: Plan, say: Say) -> dict[str, Any]:
    stores = _stores(plan, say)
    store = plan.store or stores.deep
    size = Vocabulary.load(store / "vocabulary.json").size
    results: dict[str, Any] = {
        "made": made_with(plan),
        "models": _models(plan, size),
        "stores": [_described(path, plan) for path in ([plan.store] if plan.store else [stores.deep, stores.natural])],
    }
    failed: list[str] = []

    def attempt(part: str, measure: Callable[[], Any]) -> None:
        """What one part finds does not go down with another one."""
        try:
            results[part] = measure()
        except (OutOfMemory, DataError) as error:
            failed.append(f"{part}: FAILED: {error}")

    before = sections.measure_peaks(plan, say)
    if "race" in plan.parts:
        attempt("race", lambda: sections.run_race(plan, stores, say))
        results["crossover"] = crossover(results.get("race", []), GENEMAMBA, TRANSFORMER)
        if MIXER in plan.names and layer.is_installed():
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


def _stores(plan: Plan, say: Say) -> Stores:
    if plan.store is not None:
        Manifest.load(plan.store)  # a store that cannot be read is found before anything is simulated
        if set(plan.parts) <= {"race", "loss-memory"}:
            return Stores(plan.store, plan.store, Path())
    say("simulating cells")
    # A GPU takes more of them at a time.
    n_cells = _DEEP_CELLS[plan.device]
    return simulated_stores(plan.out / f"cells-{n_cells}", n_cells)


def made_with(plan: Plan) -> dict[str, Any]:
    """Date, command, versions and hardware."""
    installed = packages()
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["gm-train", *plan.asked]),
        "git": git_revision(),
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in _PACKAGES if name in installed},
        "cpu": _cpu_name(),
        "threads": plan.threads,
        "device": torch.cuda.get_device_name() if plan.device == "cuda" else "cpu",
        "precision": plan.config.trainer.precision,
        "compile": plan.config.trainer.compile,
        "steps": plan.steps,
        "warmup": plan.warmup,
        "tokens_per_step": plan.tokens_per_step,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _models(plan: Plan, vocabulary_size: int) -> dict[str, Any]:
    device = torch.device(plan.device)
    ours = n_parameters(plan.config.model, vocabulary_size)
    found = {}
    for racer in contenders(plan.config, (GENEMAMBA, PUBLISHED, TRANSFORMER), vocabulary_size):
        kernel, why = kernel_of(racer.config, device)
        n = n_parameters(racer.config.model, vocabulary_size)
        found[racer.name] = {
            "model": asdict(racer.config.model),
            "parameters": n,
            "over_genemamba": n / ours,
            "kernel": kernel,
            "why": why,
        }
    return found


def _described(store: Path, plan: Plan) -> dict[str, Any]:
    manifest = Manifest.load(store)
    return {
        "simulated": plan.store is None,
        "name": store.name,
        "cells": manifest.n_cells,
        "mean_tokens": manifest.n_tokens / max(1, manifest.n_cells),
        "vocabulary": manifest.n_genes + 2,
        "hash": manifest.hash,
    }

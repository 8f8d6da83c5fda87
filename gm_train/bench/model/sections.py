"""The sections of a report: each one starts its processes, measures, and returns rows of plain values."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.tokens.vocabulary import Vocabulary
from gm_train.bench.measure.peaks import PeakRunner, Peaks, roofline_seconds
from gm_train.bench.measure.process import BenchProcess, OutOfMemory, call_alone
from gm_train.bench.measure.turns import FEWEST_STEPS, Say, Spread, alternate
from gm_train.bench.model import layer_runner, loss_memory
from gm_train.bench.model.contenders import GENEMAMBA, MIXER, Contender, contenders, ladder, option_pairs, with_trainer
from gm_train.bench.model.model_plan import NATURAL, ROW, ModelPlan
from gm_train.bench.model.model_runner import ModelRunner
from gm_train.bench.model.profile import ProfileRunner
from gm_train.bench.model.rooflines import KernelRunner
from gm_train.bench.model.workload import Shape, Stores, Workload

Row = dict[str, Any]


def measure_peaks(plan: ModelPlan, say: Say) -> Peaks:
    """Measure the matmul peak and the memory bandwidth of the machine."""
    say("measuring the matmul peak and the memory bandwidth")
    peaks: Peaks = call_alone("peaks", plan.threads, PeakRunner, plan.config.trainer.precision, plan.device)
    return peaks


def workload(plan: ModelPlan, store: Path, length: int | None) -> Workload:
    """Describe steps over cells of one length, packed into rows of about 2,048 tokens; longer cells get own rows.

    Args:
        plan: tokens per step and number of steps.
        store: token store.
        length: tokens of a cell; None for natural lengths.
    """
    row = ROW if length is None else length * max(1, ROW // length)
    return Workload(store, length, row, plan.tokens_per_step, n_batches=plan.steps)


def race(
    racers: Sequence[Contender],
    workloads: dict[str, Workload],
    plan: ModelPlan,
    say: Say,
    keep: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Time contenders on each workload, one process each. After running out of memory, one gets a new process.

    Args:
        racers: the contenders.
        workloads: the workloads, by label.
        plan: steps, threads and device.
        say: takes progress lines.
        keep: takes the rows so far after each workload.
    """
    rows: list[Row] = []
    with ExitStack() as stack:
        workers: dict[str, BenchProcess] = {}
        for number, label in enumerate(workloads):
            for racer in racers:
                if racer.name not in workers:
                    args = (racer, list(workloads.values()), plan.device)
                    worker = BenchProcess(racer.name, plan.threads, ModelRunner, *args)
                    workers[racer.name] = stack.enter_context(worker)
            shapes: dict[str, tuple[Shape, float]] = {}
            for name, worker in workers.items():
                say(f"{label}: {name}: warming up")
                with suppress(OutOfMemory):
                    shapes[name] = worker.call("use", number, plan.warmup)
            running = [worker for name, worker in workers.items() if name in shapes]
            seconds = alternate(running, plan.steps, lambda line, label=label: say(f"{label}: {line}"))  # type: ignore[misc]
            for racer in racers:
                row = {"contender": racer.name, "workload": label, "length": workloads[label].length}
                taken = seconds.get(racer.name)
                if taken is None:
                    workers.pop(racer.name).close()
                    rows.append(row | {"out_of_memory": True})
                else:
                    rows.append(row | measured(taken, *shapes[racer.name]) | workers[racer.name].call("facts"))
            if keep is not None:
                keep(rows)
    return rows


def measured(seconds: Sequence[float], shape: Shape, flops_per_token: float) -> Row:
    """Compute the figures of a contender on a workload.

    Args:
        seconds: seconds of each timed step, at least ten; the first step used the first batch.
        shape: shape of the batches.
        flops_per_token: FLOPs of a training step per real token.
    """
    spread = Spread.of(seconds)
    # Steps have different numbers of tokens: compute the rate of each step, then take the median.
    cells, tokens = (
        np.percentile([shape.each[i % len(shape.each)][which] / s for i, s in enumerate(seconds)], [25, 50, 75])
        for which in (0, 1)
    )
    return {
        "steps": spread.steps,
        "step_s": spread.median,
        "step_s_quartiles": [spread.low, spread.high],
        "tokens_per_s": float(tokens[1]),
        "tokens_per_s_quartiles": [float(tokens[0]), float(tokens[2])],
        "cells_per_s": float(cells[1]),
        "flops_per_token": flops_per_token,
        "flops_per_s": flops_per_token * float(tokens[1]),
        "shape": asdict(shape),
        "seconds": list(seconds),
    }


def run_race(plan: ModelPlan, stores: Stores, say: Say, keep: Callable[[list[Row]], None] | None = None) -> list[Row]:
    """Race the models over the cell lengths of the plan.

    Args:
        plan: contenders, lengths and steps.
        stores: simulated cells, used if the plan names no store.
        say: takes progress lines.
        keep: takes the rows so far after each length.
    """
    names = plan.names
    store = plan.store or stores.deep
    size = Vocabulary.load(store / "vocabulary.json").size
    workloads = {}
    for length in plan.lengths:
        natural = length is None
        workloads[NATURAL if natural else f"{length}"] = workload(
            plan, plan.store or (stores.natural if natural else stores.deep), length
        )
    return race(contenders(plan.config, names, size), workloads, plan, say, keep)


def run_layer(plan: ModelPlan, say: Say) -> list[Row]:
    """Time one layer of ours and of `transformers` in one direction, at our chunk size and at the package's."""
    model = replace(plan.config.model, arch="mamba")
    rows, length = max(1, plan.tokens_per_step // ROW), ROW
    runners = [
        (name, replace(model, chunk=chunk), name == MIXER)
        for chunk in dict.fromkeys((model.chunk, layer_runner.THEIR_CHUNK))
        for name in (GENEMAMBA, MIXER)
    ]
    with ExitStack() as stack:
        precision, device = plan.config.trainer.precision, plan.device
        workers = []
        for name, sizes, theirs in runners:
            args = (sizes, theirs, sizes.chunk, rows, length, precision, device)
            worker = BenchProcess(f"{name}, chunk {sizes.chunk}", plan.threads, layer_runner.LayerRunner, *args)
            workers.append(stack.enter_context(worker))
        for worker in workers:
            say(f"one layer: {worker.name}: warming up")
            worker.call("use", plan.warmup)
        seconds = alternate(workers, plan.steps, lambda line: say(f"one layer: {line}"))
        layers = []
        for worker in workers:
            taken = seconds[worker.name]
            if taken is None:
                layers.append({"layer": worker.name, "out_of_memory": True})
                continue
            spread = Spread.of(taken)
            layers.append(
                {"layer": worker.name, "step_s": spread.median, "step_s_quartiles": [spread.low, spread.high],
                 "steps": spread.steps, "tokens": rows * length} | worker.call("facts")
            )  # fmt: skip
    return layers


def run_ladder(
    plan: ModelPlan, stores: Stores, say: Say, keep: Callable[[dict[str, list[Row]]], None] | None = None
) -> dict[str, list[Row]]:
    """Time the rungs from the published layer to ours, on cells of natural lengths and on full rows.

    Args:
        plan: steps, and the store if it names one.
        stores: simulated cells.
        say: takes progress lines.
        keep: takes the rungs so far after each kind of cells.
    """
    rungs = ladder(plan.config, plan.compiled, torch.device(plan.device))
    loads = {
        "natural lengths": workload(plan, plan.store or stores.natural, None),
        "full rows": workload(plan, stores.deep, ROW),
    }
    # The user's store has a different vocabulary, so its models differ from those of simulated cells.
    runs = [loads] if plan.store is None else [{label: load} for label, load in loads.items()]
    done: list[Row] = []

    def by_label(rows: list[Row]) -> dict[str, list[Row]]:
        found = dict.fromkeys(row["workload"] for row in rows)
        return {label: with_speed_ups([row for row in rows if row["workload"] == label]) for label in found}

    def partly(rows: list[Row]) -> None:
        if keep is not None:
            keep(by_label(done + rows))

    for run in runs:
        done += race(rungs, run, plan, lambda line: say(f"ladder: {line}"), partly)
    return by_label(done)


def with_speed_ups(rows: list[Row]) -> list[Row]:
    """Add `over_published` and `over_previous`, ratios of cells/s; None if a rung of the ratio has no figures."""
    climbed = []
    for i, row in enumerate(rows):
        first, previous = rows[0].get("cells_per_s"), rows[max(0, i - 1)].get("cells_per_s")
        own = row.get("cells_per_s")
        climbed.append(
            row
            | {
                "over_published": own / first if own and first else None,
                "over_previous": own / previous if own and previous else None,
            }
        )
    return climbed


def run_options(plan: ModelPlan, stores: Stores, say: Say) -> list[Row]:
    """Time each option on and off, all in one run.

    Args:
        plan: the model and steps.
        stores: simulated cells and gene sets.
        say: takes progress lines.
    """
    chosen, racers = option_pairs(plan.config, plan.compiled, stores.gmt)
    load = workload(plan, stores.deep, ROW)
    rows = {row["contender"]: row for row in race(racers, {"options": load}, plan, say)}
    return [{"option": option, "off": rows[off], "on": rows[on]} for option, off, on in chosen]


def run_kernels(plan: ModelPlan, stores: Stores, peaks: Peaks, say: Say) -> list[Row]:
    """Time each kernel of genemamba alone, against its roofline.

    Args:
        plan: the model and steps.
        stores: simulated cells.
        peaks: measured peaks of the machine.
        say: takes progress lines.
    """
    say("kernels, each alone")
    load = workload(plan, stores.deep, ROW)
    contender = Contender(GENEMAMBA, with_trainer(plan.config, compile=False, activation_checkpointing=False))
    repeats = max(FEWEST_STEPS, plan.steps)
    kernels = call_alone("kernels", plan.threads, KernelRunner, contender, load, plan.device, repeats)
    return [against_roofline(row, peaks) for row in kernels]


def against_roofline(row: Row, peaks: Peaks) -> Row:
    """Add to a kernel's row its median time, its roofline time, what bounds it and the fraction of the roofline."""
    median = float(np.median(row["seconds"]))
    least = roofline_seconds(row["flops"], row["bytes"], peaks)
    bound = "arithmetic" if row["flops"] / peaks.flops >= row["bytes"] / peaks.bandwidth else "memory"
    return row | {"median_s": median, "least_s": least, "bound": bound, "fraction": least / median}


def run_loss_memory(plan: ModelPlan, say: Say) -> list[Row]:
    """Measure the memory of the output layer and its loss, each way in a fresh process."""
    rows = []
    for way, whole in (("in chunks", False), ("whole logits of the masked positions", True)):
        say(f"memory of the loss, {way}")
        sizes = (loss_memory.ROWS * loss_memory.LENGTH, loss_memory.D_MODEL, loss_memory.VOCABULARY)
        row = call_alone("loss memory", plan.threads, loss_memory.LossMemoryRunner, whole, *sizes, plan.device)
        rows.append({"way": way, "tokens": sizes[0], "d_model": sizes[1], "vocabulary": sizes[2]} | row)
    return rows


def run_profile(plan: ModelPlan, stores: Stores, say: Say) -> dict[str, float]:
    """Return the seconds of a step of genemamba by part.

    Args:
        plan: the model and warmup.
        stores: simulated cells.
        say: takes progress lines.
    """
    say("profiling a step")
    load = workload(plan, stores.deep, ROW)
    contender = Contender(GENEMAMBA, with_trainer(plan.config, compile=False, activation_checkpointing=False))
    by_part: dict[str, float] = call_alone(
        "profile", plan.threads, ProfileRunner, contender, load, plan.device, plan.warmup
    )
    return by_part

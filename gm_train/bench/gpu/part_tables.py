"""Render the results of each part of `gm-train bench gpu`: lists of paragraphs and tables in Markdown."""

from collections.abc import Callable

from gm_train.bench.gpu.kernel_parity import LIMITS
from gm_train.bench.gpu.scene import Row
from gm_train.bench.gpu.timed_steps import SAME_PART, least_step_seconds
from gm_train.bench.model.model_report import SECTIONS
from gm_train.bench.tables import mebibytes, seconds, table


def _section(name: str, results: Row) -> str:
    """A section of `gm-train bench model` without its heading, one level deeper."""
    return SECTIONS[name](results).split("\n\n", 1)[1].replace("### ", "#### ")


def _machine(results: Row) -> list[str]:
    texts = []
    if kernel := results.get("kernel"):
        texts.append(
            f"`model.kernel=auto` takes {kernel['kernel']} ({kernel['why']}), chosen in {kernel['chosen_s']:.1f} s, "
            "with the compilation of its kernels where it runs on a GPU."
        )
    if peaks := results.get("peaks"):
        texts.append(
            f"Measured peaks: {peaks['flops'] / 1e12:,.2f} TFLOP/s ({peaks['side']:,}² product, bf16), "
            f"{peaks['bandwidth'] / 1e9:,.0f} GB/s (triad)."
        )
    return texts


def _cells(results: Row) -> list[str]:
    return [f"{results['cells']:,} cells for timed steps and an atlas, in {results['seconds']:.0f} s."]


def _parity(results: Row) -> list[str]:
    rows = []
    for case in results["cases"]:
        gradients = {name: error for name, error in case["errors"].items() if name.startswith("gradient")}
        worst = max(gradients, key=lambda name: gradients[name])
        outputs = max(error for name, error in case["errors"].items() if name not in gradients)
        rows.append(
            [f"{case['case']}; {case['sizes']}", case["precision"], f"{outputs:.1e}", f"{min(gradients.values()):.1e}",
             f"{gradients[worst]:.1e}", worst.removeprefix("gradient by ")]
        )  # fmt: skip
    header = ["what", "precision", "output", "least gradient", "worst gradient", "by"]
    note = (
        "Largest deviation over the largest expected magnitude, on packed rows of 291 tokens. Expected is float64 on "
        "the CPU: of a mixer the recurrence token by token, of a layer the same module in PyTorch. Limits: "
        + "; ".join(
            f"{precision} {value:.0e}, of gradients by parameters {parameter:.0e}"
            for precision, (value, parameter) in LIMITS.items()
        )
        + "."
    )
    kernels = "Kernels: " + "; ".join(f"{label}: {kernel}" for label, kernel in results["kernels"].items()) + "."
    return [note, kernels, table(header, rows)]


def _run_row(name: str, run: Row, off: list[str]) -> list[str]:
    return [
        name,
        *off,
        f"{run['losses'][0]:.4f}",
        f"{run['losses'][-1]:.4f}",
        *(seconds(run[key]) for key in ("first_step_s", "step_s", "seconds")),
    ]


def _losses(results: Row) -> list[str]:
    rows = [_run_row("CPU, fp32", results["cpu"], ["-", "-"])]
    for name, run in results["runs"].items():
        off = [f"{off:.1e} (limit {limit:.0e})" for off, limit in zip(run["off"], run["limits"], strict=True)]
        rows.append(_run_row(f"device, {name}", run, off))
    header = ["run", "losses off by", "first gradient's norm off by", "first loss", "last loss", "first step"]
    header += ["later step", "whole command"]
    note = (
        f"`gm-train fit`, ten steps of {results['rows']} rows of {results['length']:,} tokens, the same cells. Off by: "
        "the largest relative difference from the CPU. The first step compiles. The runs shared the machine, so their "
        "times say how long a start takes, and nothing about speed."
    )
    return [note, table(header, rows)]


def _resume(results: Row) -> list[str]:
    before, after = results["off"]["before"], results["off"]["after"]
    if not before and not after:
        return [
            f"A run that ends after step {results['stopped_after']} and is resumed has the same losses as one without "
            "a stop, to the last bit."
        ]
    return [
        f"Largest relative difference of a loss between a run that ends after step {results['stopped_after']} and is "
        f"resumed, and one without a stop: {before:.1e} before the stop, where both are runs of the same steps, and "
        f"{after:.1e} after it."
    ]


def _first_steps(rows: list[Row]) -> str:
    lines = [[row["contender"], row["workload"], seconds(row["first_step_s"])] for row in rows if "first_step_s" in row]
    return table(["contender", "cells", "first step, with compilation"], lines)


def _race(results: Row) -> list[str]:
    note = f"About {results['tokens_per_step']:,} tokens a step, bf16, not compiled by torch.compile."
    return [note, _section("race", results), _first_steps(results["race"])] if results["race"] else [note]


def _ladder(results: Row) -> list[str]:
    note = f"About {results['tokens_per_step']:,} tokens a step, bf16."
    rows = [row for rungs in results["ladder"].values() for row in rungs]
    return [note, _section("ladder", results), _first_steps(rows)]


def _profile(results: Row) -> list[str]:
    texts = [f"About {results['tokens_per_step']:,} tokens a step, bf16, not compiled.", _section("profile", results)]
    traffic = results.get("traffic")
    if traffic is None:
        return texts
    layers, taken = results["layers"], results["profile"]
    part_of = {moved: part for part, moved in SAME_PART.items()}
    rows = []
    for part in traffic["parts"]:
        own = taken.get(part_of.get(part["part"], ""))
        rate = f"{part['bytes'] * layers / own / 1e9:,.0f}" if own else "-"
        rows.append([part["part"], f"{part['bytes'] / 1e9:.3f}", str(part["launches"]), rate])
    header = ["part", "GB a layer", "launches a layer", "GB/s by the profile's time"]
    note = f"Counted on fake tensors with model.kernel={traffic['kernel']}, forward and backward:"
    return [*texts, note, table(header, rows)]


def _roofline(results: Row) -> list[str]:
    rows = [
        [row["contender"], "out of memory", "-", "-"]
        if row.get("out_of_memory")
        else [row["contender"], f"{row['tokens_per_s']:,.0f}", seconds(row["first_step_s"]),
              mebibytes(row["peak_memory"])]
        for row in results["steps"]
    ]  # fmt: skip
    texts = [
        f"Whole steps of {results['tokens_per_step']:,} tokens, bf16, rows of 2,048:",
        table(["step", "tokens/s", "first step, with compilation", "peak memory"], rows),
    ]
    if "kernels" in results:
        least = seconds(least_step_seconds(results["kernels"]))
        texts += [
            f"The rooflines of all kernels add up to {least} a step: {results['roofline_tokens_per_s']:,.0f} tokens/s.",
            _section("kernels", results),
        ]
    return texts


def _commands(results: Row) -> list[str]:
    texts = []
    if found := results.get("eval"):
        texts.append(
            f"`gm-train eval`: {found['seconds']:.0f} s for {found['cells']['held_out']} held-out cells and their "
            f"controls, in {found['precision']}; {found['numbers']} figures."
        )
    for name, where in (("device", "on the device"), ("cpu", "on the CPU")):
        if found := results.get(f"embed_{name}"):
            texts.append(
                f"`gm-train embed` {where}, {found['precision']}: {found['seconds']:.0f} s. {found['rate']}".strip()
            )
    if "embed_off" in results:
        texts.append(f"The vectors differ by {results['embed_off']:.1e} in the Euclidean norm.")
    return texts


PART_TABLES: dict[str, Callable[[Row], list[str]]] = {
    "machine": _machine,
    "cells": _cells,
    "parity": _parity,
    "losses": _losses,
    "resume": _resume,
    "race": _race,
    "ladder": _ladder,
    "profile": _profile,
    "roofline": _roofline,
    "commands": _commands,
}

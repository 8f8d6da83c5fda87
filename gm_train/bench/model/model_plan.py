"""The plan of `gm-train bench model`: what to run."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from gm_train.bench.measure.turns import FEWEST_STEPS
from gm_train.bench.model import contenders, layer_runner
from gm_train.bench.model.workload import DEEPEST
from gm_train.config.check import ConfigError
from gm_train.config.schema import Config

#: Sections of a report, in order.
PARTS = ("race", "ladder", "kernels", "options", "loss-memory", "profile")
DEFAULT_PARTS = ("race", "ladder", "kernels")
#: Label of cells with their natural lengths.
NATURAL = "natural"
#: Least tokens per row; shorter cells are packed.
ROW = 2048
#: Sizes for a CPU, and for a two-minute run; a configuration file replaces them.
CPU_SIZES = ("model.d_model=256", "model.n_layers=4", "model.n_heads=4")
QUICK_SIZES = ("model.d_model=128", "model.n_layers=2", "model.n_heads=2")


@dataclass(frozen=True)
class ModelPlan:
    """Settings of the whole benchmark.

    Attributes:
        config: model, objective, optimizer and precision of `genemamba`.
        parts: sections to run, from `PARTS`.
        names: contenders of the race, from `contenders.NAMES`.
        lengths: cell lengths of the race, in tokens; None means natural lengths.
        tokens_per_step: tokens of all rows of a step; a longer row is a step of its own.
        steps, warmup: timed and untimed steps of each contender at each length.
        threads: number of PyTorch threads.
        device: cpu or cuda.
        store: the user's token store, or None for simulated cells.
        out: folder for the results.
        compiled: whether the ladder and the options include torch.compile.
        asked: the command line, for the report.
    """

    config: Config
    parts: tuple[str, ...] = DEFAULT_PARTS
    names: tuple[str, ...] = contenders.NAMES
    lengths: tuple[int | None, ...] = (512, 1024, 2048, 4096, 8192)
    tokens_per_step: int = 8192
    steps: int = 12
    warmup: int = 2
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    device: str = "cpu"
    store: Path | None = None
    out: Path = Path("runs/bench-model")
    compiled: bool = True
    asked: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ConfigError with all problems if the plan cannot be run or would not be worth reporting."""
        problems = []
        if self.steps < FEWEST_STEPS:
            problems.append(f"--steps {self.steps}: nothing is reported from fewer than {FEWEST_STEPS} timed steps")
        if self.warmup < 1:
            problems.append(f"--warmup {self.warmup}: must be at least 1, since the first steps of a process are slow")
        if self.tokens_per_step < 1 or self.threads < 1:
            problems.append("--tokens-per-step and --threads must be at least 1")
        for kind, given, known in (("--parts", self.parts, PARTS), ("--contenders", self.names, contenders.NAMES)):
            problems += [f"{kind} {name}: expected some of {', '.join(known)}" for name in given if name not in known]
        for length in self.lengths:
            if length is not None and length < 1:
                problems.append(f"--lengths {length}: must be at least 1")
            elif length is not None and length > DEEPEST and self.store is None:
                problems.append(f"--lengths {length}: simulated cells have at most {DEEPEST:,} tokens")
        if not self.lengths:
            problems.append("--lengths: none given")
        if self.config.model.arch == "transformer":
            problems.append(
                "model.arch=transformer: it is a separate contender; set bimamba or mamba, with the sizes of genemamba"
            )
        if self.config.model.mixer != "mamba2":
            problems.append(
                f"model.mixer={self.config.model.mixer}: FLOPs and kernels are known only for model.mixer=mamba2"
            )
        if self.config.objective.language == "missing":
            problems.append(
                "objective.language=missing: contenders predict single genes, as the published model does; use masked"
            )
        if problems:
            raise ConfigError(problems)

    def left_out(self) -> list[str]:
        """List what the figures do not contain, as sentences."""
        notes = [
            "Not timed: reading and packing cells (batches are made beforehand and used in turn), validation, "
            "checkpoints, logging, and anything between processes (one process per model, no gradient all-reduce, no "
            "sharding).",
            "Model FLOPs count matrix products and the convolution of real tokens, with the backward pass as twice the "
            "forward pass. Pads, norms, activations and work that is repeated to save memory are not counted.",
            f"Cells of natural length are cut to {ROW:,} genes; `published` gives each a row of that length.",
            "The single kernels leave out residual sums, the final norm and the masks of cells; they are not compiled. "
            "Rooflines exist only for the kernels of Bi-Mamba, not for the transformer.",
            "MFU counts what a contender computes, including the second input projection of `published`. It is an "
            "assumption that the published code pads to the length of the row.",
        ]
        if not self.compiled:
            notes.append("torch.compile: left out, since compiling takes minutes.")
        notes += [f"{part}: not run; add it with --parts." for part in PARTS if part not in self.parts]
        notes += [f"{name}: not run; add it with --contenders." for name in contenders.NAMES if name not in self.names]
        if contenders.MIXER in self.names and not layer_runner.is_installed():
            notes.append(f"{contenders.MIXER}: transformers is not installed; pip install 'gm-train[bench]'.")
        if self.device == "cpu":
            if self.compiled:
                notes.append(
                    "Peak memory on a CPU is that of the process: with compiled blocks it includes the compiler."
                )
            notes.append("GPU: not run; `gm-train bench gpu` measures one.")
        return notes


def quick(plan: ModelPlan) -> ModelPlan:
    """Shorten a plan to about two minutes on two cores."""
    return replace(
        plan,
        names=tuple(name for name in contenders.NAMES if name != contenders.MIXER),
        lengths=(512, 2048),
        tokens_per_step=ROW,
        steps=FEWEST_STEPS,
        warmup=1,
        compiled=False,
    )

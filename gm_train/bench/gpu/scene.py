"""What a part gets: the folder of the results, the device, and a function that keeps what is known so far."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from gm_train.bench.gpu.gpu_plan import GpuSizes, sizes_on
from gm_train.bench.model.model_plan import ModelPlan
from gm_train.config.load import load_config
from gm_train.config.schema import Config

Row = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """Where a part runs.

    Attributes:
        out: folder of the results.
        device: cuda, or cpu for a rehearsal.
        keep: writes the part's results, in place of those written before. `problems` among them is a list of
            sentences, and empty if everything is as it should be.
    """

    out: Path
    device: str
    keep: Callable[[Row], None]

    @property
    def sizes(self) -> GpuSizes:
        """Sizes for the device."""
        return sizes_on(self.device)

    @property
    def cells(self) -> Path:
        """Folder of the simulated cells."""
        return self.out / "cells"

    def config(self, *words: str) -> Config:
        """Return the configuration of the model in bf16, with further settings."""
        settings = ("trainer.precision=bf16", "data.store=simulated", "objective.language=masked")
        return load_config(*self.sizes.model, *settings, *words)

    def plan(self, tokens_per_step: int) -> ModelPlan:
        """Return a plan of `gm-train bench model` with these sizes, without torch.compile."""
        return ModelPlan(
            self.config(),
            names=("genemamba", "published", "transformer"),
            lengths=self.sizes.lengths,
            tokens_per_step=tokens_per_step,
            steps=self.sizes.steps,
            warmup=self.sizes.warmup,
            threads=len(os.sched_getaffinity(0)),
            device=self.device,
            out=self.out,
            compiled=False,
        )

    def command(self, *words: str | Path, on_cpu: bool = False) -> tuple[str, float]:
        """Run a command of gm-train as a process of its own.

        Args:
            words: after `gm-train`.
            on_cpu: hide the GPU from it.

        Returns:
            What it printed, and its seconds.

        Raises:
            DataError: it failed; the message ends with what it wrote last.
        """
        texts = [str(word) for word in words]
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})
        say(f"$ gm-train {' '.join(texts)}")
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "gm_train.cli", *texts], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment,
        )  # fmt: skip
        seconds = time.monotonic() - started
        say(done.stdout)
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-15:])
            raise DataError(f"gm-train {texts[0]} ended with code {done.returncode}:\n{last}")
        return done.stdout, seconds


def say(line: str) -> None:
    """Write a line to the log of the part at once: the process may be killed at its limit."""
    print(line, flush=True)

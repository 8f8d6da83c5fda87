"""Measure a few training steps of a model on this machine, in a process of its own, for a plan."""

import os
import statistics
from typing import Any

import torch

from data_shards.errors import DataError
from gm_train.bench.measure.clock import Clock
from gm_train.bench.measure.peak_memory import PeakMemory
from gm_train.bench.measure.process import BenchProcess, OutOfMemory
from gm_train.config.micro_rows import choose_micro_rows
from gm_train.config.schema import Config
from gm_train.model.compile import prepare_blocks
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.loss import computing_in
from gm_train.optim import build_optimizer
from gm_train.plan.step_time import Measured
from gm_train.ranks.allocator import keep_freed_memory
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import device_memory

#: Tokens of a measured micro-batch on a CPU, where the time is the same for every token. A GPU gets the run's own.
CPU_TOKENS = 2048
_STEPS, _WARMUP = 3, 2


class StepRunner:
    """A model that takes steps on random tokens.

    Args:
        config: sizes and precision.
        vocabulary_size: number of tokens.
        rows, length: rows of the micro-batch, and their tokens.
        device: cpu or cuda.
    """

    def __init__(self, config: Config, vocabulary_size: int, rows: int, length: int, device: str) -> None:
        self._config, self._device = config, torch.device(device)
        keep_freed_memory(self._device)  # as a training does
        torch.manual_seed(0)
        self._ids = torch.randint(2, vocabulary_size, (rows, length), device=self._device)
        rate = config.objective.target_rate
        self._at = torch.randperm(rows * length, device=self._device)[: max(1, round(rate * rows * length))]
        self._memory = PeakMemory(self._device)
        self._model = GeneMamba(config.model, vocabulary_size).to(self._device)
        prepare_blocks(self._model, config.trainer)
        self._optimizer = build_optimizer(self._model, config.optim)
        self._clock = Clock(self._device)

    def run(self) -> dict[str, Any]:
        """Return the medians of the seconds of a pass and of an update, and the bytes added at the peak."""
        passes, updates = [], []
        for number in range(_WARMUP + _STEPS):
            if number == _WARMUP:
                self._memory.reset()
            self._clock.start()
            with computing_in(self._config.trainer.precision, self._device):
                states = self._model(self._ids, torch.ones_like(self._ids)).flatten(0, 1)
                loss = self._model.language_loss(states[self._at], self._ids.flatten()[self._at])
            torch.autograd.backward(loss / len(self._at))
            del states, loss
            passes.append(self._clock.stop())
            self._clock.start()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optim.clip)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            updates.append(self._clock.stop())
        return {
            "pass_s": statistics.median(passes[_WARMUP:]),
            "update_s": statistics.median(updates[_WARMUP:]),
            "peak": self._memory.added(),
        }


def measure_step(config: Config, vocabulary_size: int, ranks: Ranks) -> Measured:
    """Take a few steps of the configured model on this machine's GPU, or else on its CPU.

    Args:
        config: of the run.
        vocabulary_size: number of tokens.
        ranks: those of the run; they share this machine's cores and memory.

    Raises:
        DataError: the measurement failed, or the device has too little memory for it.
    """
    on_gpu = torch.cuda.is_available()
    rows, length = choose_micro_rows(config, ranks.world_size), config.data.row_length
    if not on_gpu:
        length = min(length, CPU_TOKENS)
        rows = min(rows, max(1, CPU_TOKENS // length))
    threads = max(1, len(os.sched_getaffinity(0)) // ranks.local_size)
    kind = "cuda" if on_gpu else "cpu"
    try:
        with BenchProcess("plan", threads, StepRunner, config, vocabulary_size, rows, length, kind) as process:
            process.wait_until_started()
            found = process.call("run")
    except OutOfMemory as error:
        raise DataError(
            f"a step of {rows} rows of {length:,} tokens does not fit into this GPU ({error}): set a smaller "
            "data.micro_rows; without --measured, `gm-train plan` says what would fit"
        ) from error
    name = torch.cuda.get_device_name() if on_gpu else f"a CPU, {threads} thread{'s' if threads > 1 else ''} a rank"
    return Measured(
        rows * length, found["pass_s"], found["update_s"], found["peak"], name, device_memory(ranks), on_gpu
    )

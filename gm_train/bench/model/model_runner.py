"""A model that takes training steps, in the worker process of its contender."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.nn import functional as F

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import Vocabulary
from gm_train.bench.measure.clock import Clock
from gm_train.bench.measure.peak_memory import PeakMemory
from gm_train.bench.model.contenders import Contender
from gm_train.bench.model.workload import Shape, Workload, make_batches
from gm_train.objective.loss import computing_in, loss_sums
from gm_train.optim import build_optimizer
from gm_train.ranks.allocator import keep_freed_memory


class ModelRunner:
    """A model, its optimizer and its batches, timed in a worker process.

    Args:
        contender: the model.
        workloads: the workloads; all batches are made here, before timing.
        device: cpu or cuda.
    """

    def __init__(self, contender: Contender, workloads: Sequence[Workload], device: str) -> None:
        self.contender, self.device = contender, torch.device(device)
        keep_freed_memory(self.device)  # as a training does
        config = contender.config
        self._work = [
            make_batches(workload, config.objective, contender.padded, contender.all_positions)
            for workload in workloads
        ]
        self.vocabulary_size = Vocabulary.load(workloads[0].store / "vocabulary.json").size
        self._memory = PeakMemory(self.device)
        self.model = contender.build(self.vocabulary_size, self.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self._clock = Clock(self.device)
        self.losses: list[float] = []
        self._first_step_s: float | None = None

    def use(self, workload: int, warmup: int) -> tuple[Shape, float]:
        """Switch to a workload and take untimed steps.

        Args:
            workload: index into `workloads`.
            warmup: number of untimed steps.

        Returns:
            The shape of a step, and its FLOPs per real token.
        """
        batches, shape = self._work[workload]
        self._batches = [move_data_to_device(batch, self.device) for batch in batches]
        self._at = 0
        seconds = [self.step() for _ in range(warmup)]
        self._first_step_s = seconds[0] if seconds else None
        self._at = 0
        self._memory.reset()
        targets = shape.targets / shape.tokens
        return shape, self.contender.flops_per_token(self.vocabulary_size, shape.context, targets, self.device)

    def step(self) -> float:
        """Take a training step (loss, gradient, clipping, update) and return its seconds.

        Raises:
            DataError: the loss is not finite.
        """
        config = self.contender.config
        batch = self._batches[self._at % len(self._batches)]
        self._at += 1
        self._clock.start()
        with computing_in(config.trainer.precision, self.device):
            if self.contender.whole_logits:
                states = self.model(batch.input_ids, batch.segment).flatten(0, 1)
                logits = self.model.logits(states[batch.target_at]).float()
                loss = F.cross_entropy(logits, batch.targets)
            else:
                lang, pathway = loss_sums(self.model, batch, config.objective)
                loss = lang / max(1, batch.info.n_targets)
                loss = loss + config.objective.gamma * pathway / max(1, batch.info.n_pairs)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = self._clock.stop()
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(f"the loss is {value} after {self._at} steps: a lower optim.lr may help")
        self.losses.append(value)
        return seconds

    def steps(self, n: int) -> list[float]:
        """Take n timed steps and return the seconds of each.

        The contenders share a GPU. There, unused memory is freed after each turn, and a turn starts with an untimed
        step that allocates it again.
        """
        if self.device.type != "cuda":
            return [self.step() for _ in range(n)]
        self.step()
        self._at -= 1  # the untimed step must not use up a batch
        seconds = [self.step() for _ in range(n)]
        torch.cuda.empty_cache()
        return seconds

    def facts(self) -> dict[str, Any]:
        """Return peak memory since the last `use` (bytes added since before the model), last loss, and parameters.

        Also the seconds of the first step with this workload, in which kernels are compiled.
        """
        return {
            "peak_memory": self._memory.added(),
            "loss": self.losses[-1],
            "first_step_s": self._first_step_s,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

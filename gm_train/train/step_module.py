"""The training step of `gm-train fit`, read from top to bottom."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from gm_train.config.schema import Config
from gm_train.model.classes import Classes
from gm_train.model.compile import prepare_blocks
from gm_train.objective.batches import MicroBatch, StepInfo
from gm_train.objective.loss import computing_in, loss_sums
from gm_train.optim import build_optimizer, learning_rate, set_learning_rate
from gm_train.ranks.ranks import Ranks
from gm_train.ranks.signals import Leaving
from gm_train.strategies.steps import Steps
from gm_train.train.late_numbers import LateNumbers
from gm_train.train.module import GeneMambaModule
from gm_train.train.step_exchange import StepExchange


@dataclass(frozen=True)
class StepResult:
    """The result of a finished optimizer step, the same on every rank.

    Attributes:
        info: counts over all ranks; `lanes` are those of this rank.
        l_lang, l_pathway: means over the step's targets and pairs, nats; `loss` is their weighted sum. In a run that
            learns a label, `l_lang` is the mean over the labelled cells, and equals `loss`.
        grad_norm: norm of the whole gradient before clipping.
        lr: learning rate of the step.
        finite: False if the step was skipped because a number was not finite.
    """

    info: StepInfo
    loss: float
    l_lang: float
    l_pathway: float
    grad_norm: float
    lr: float
    finite: bool


@dataclass(frozen=True)
class _Unsettled:
    """A step whose numbers are on their way: its counts, its learning rate; parts of both losses, and the norm."""

    info: StepInfo
    lr: float
    numbers: LateNumbers


class StepModule(GeneMambaModule):
    """A GeneMambaModule whose optimizer steps are those of a `Steps` strategy.

    A step whose loss or gradient is not finite changes no weight. Nothing in a step waits for the device: the result
    of a step is fetched during the next one.

    Args:
        config: the run's configuration, `optim.schedule_steps` set.
        vocabulary_size: number of tokens.
        ranks: this process among the others.
        leaving: knows whether a signal to leave has arrived.
        step: optimizer steps that the run has done already.
        classes: what a run with `task.name=classify` learns; None for other runs.

    Attributes:
        info: counts over all ranks of the last step; `lanes` are those of this rank.
        finished: the result of the step before the last one; None if it was settled, or there was none.
    """

    def __init__(
        self,
        config: Config,
        vocabulary_size: int,
        ranks: Ranks,
        leaving: Leaving,
        step: int = 0,
        classes: Classes | None = None,
    ) -> None:
        super().__init__(config, vocabulary_size, classes)
        self.automatic_optimization = False
        self.ranks = ranks
        self.step = step
        self.info: StepInfo
        self.finished: StepResult | None = None
        self._ahead: StepInfo | None = None
        self._unsettled: _Unsettled | None = None
        self._exchange = StepExchange(ranks, leaving)

    def configure_model(self) -> None:
        """Prepare the blocks (compilation, for example) and shard the model."""
        trainer = self.config.trainer
        prepare_blocks(self.model, replace(trainer, compile=self.steps.compile_setting(trainer.compile)))
        self.steps.shard(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build AdamW over the model's parameters."""
        return build_optimizer(self.model, self.config.optim, self.config.task.head_lr_factor)

    @property
    def steps(self) -> Steps:
        """The strategy, which spreads a step over the ranks."""
        strategy = self.trainer.strategy
        assert isinstance(strategy, Steps)
        return strategy

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, without Lightning's wrapper."""
        wrapped = self.optimizers()
        assert isinstance(wrapped, LightningOptimizer)
        return wrapped.optimizer

    def training_step(self, batch: MicroBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Add a micro-batch's gradients; after the last one of a step, step the optimizer."""
        objective = self.config.objective
        if batch.first:
            # The first step of a start is the only one whose counts did not come with the step before.
            self.info = batch.info.over(self.ranks) if self._ahead is None else self._ahead
            self._sums = torch.zeros(2, device=self.device)
        n_targets, n_pairs = max(1, self.info.n_targets), max(1, self.info.n_pairs)

        with self.steps.accumulating(self.model, batch.last):
            with computing_in(self.config.trainer.precision, self.device):
                lang, pathway = loss_sums(self.model, batch, objective)
            loss = lang / n_targets + objective.gamma * pathway / n_pairs
            self._sums += torch.stack([lang.detach() / n_targets, pathway.detach() / n_pairs])
            if batch.last:
                # A loss that is not finite may have a finite gradient. NaN makes the norm not finite on every rank.
                loss = loss * (1.0 + (self._sums * 0.0).sum())
                # The step before has ended on the device, or will soon: its numbers are fetched while this one waits
                # in the device's queue.
                self._exchange.begin(batch.ahead, self._own_losses())
            # All strategies average gradients over the ranks.
            self.manual_backward(loss * self.ranks.world_size)
        if batch.last:
            self._update()

    def _own_losses(self) -> list[float]:
        return [0.0, 0.0] if self._unsettled is None else self._unsettled.numbers.get()[:2]

    def _update(self) -> None:
        optimizer = self.optimizer
        lr = learning_rate(self.step, self.config.optim)
        set_learning_rate(optimizer, lr)
        norm = self.steps.update(self.model, optimizer, self.config.optim.clip)
        numbers = LateNumbers(torch.cat([self._sums, norm[None]]))
        losses, self._ahead = self._exchange.end()
        self.finished = None if self._unsettled is None else self._result(self._unsettled, losses)
        self._unsettled = _Unsettled(self.info, lr, numbers)
        self.step += 1

    def settle(self) -> StepResult:
        """Wait for the result of the last step; all ranks call this together, once for a step."""
        assert self._unsettled is not None
        result = self._result(self._unsettled, self._exchange.at_once(self._own_losses()))
        self._unsettled = None
        return result

    def own_result(self) -> StepResult | None:
        """The result of the last step if it is not settled, without the losses of other ranks; for this rank alone."""
        if self._unsettled is None:
            return None
        return self._result(self._unsettled, self._own_losses())

    def _result(self, step: _Unsettled, losses: Sequence[float]) -> StepResult:
        l_lang, l_pathway = losses
        grad_norm = step.numbers.get()[2]
        loss = l_lang + self.config.objective.gamma * l_pathway
        return StepResult(step.info, loss, l_lang, l_pathway, grad_norm, step.lr, math.isfinite(grad_norm))

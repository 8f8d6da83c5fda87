"""The training step of `gm-train fit`, read from top to bottom."""

import math
from dataclasses import dataclass

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from gm_train.config.schema import Config
from gm_train.model.classes import Classes
from gm_train.model.compile import prepare_blocks
from gm_train.objective.batches import MicroBatch, StepInfo
from gm_train.objective.loss import computing_in, loss_sums
from gm_train.optim import build_optimizer, learning_rate, set_learning_rate
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.steps import Steps
from gm_train.train.module import GeneMambaModule


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


class StepModule(GeneMambaModule):
    """A GeneMambaModule whose optimizer steps are those of a `Steps` strategy.

    A step whose loss or gradient is not finite changes no weight, and the result of a step is available as it ends.

    Args:
        config: the run's configuration, `optim.schedule_steps` set.
        vocabulary_size: number of tokens.
        ranks: this process among the others.
        step: optimizer steps that the run has done already.
        classes: what a run with `task.name=classify` learns; None for other runs.
    """

    def __init__(
        self, config: Config, vocabulary_size: int, ranks: Ranks, step: int = 0, classes: Classes | None = None
    ) -> None:
        super().__init__(config, vocabulary_size, classes)
        self.automatic_optimization = False
        self.ranks = ranks
        self.step = step
        self._info: StepInfo
        self.last_result: StepResult

    def configure_model(self) -> None:
        """Prepare the blocks (compilation, for example) and shard the model."""
        prepare_blocks(self.model, self.config.trainer)
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
        """Add a micro-batch's gradients; after the last one of a step, step the optimizer and set `last_result`."""
        objective = self.config.objective
        if batch.first:
            self._info = batch.info.over(self.ranks)
            self._sums = torch.zeros(2, device=self.device)
        n_targets, n_pairs = max(1, self._info.n_targets), max(1, self._info.n_pairs)

        with self.steps.accumulating(self.model, batch.last):
            with computing_in(self.config.trainer.precision, self.device):
                lang, pathway = loss_sums(self.model, batch, objective)
            loss = lang / n_targets + objective.gamma * pathway / n_pairs
            self._sums += torch.stack([lang.detach() / n_targets, pathway.detach() / n_pairs])
            if batch.last:
                # A loss that is not finite may have a finite gradient. NaN makes the norm not finite on every rank.
                loss = loss * torch.where(self._sums.isfinite().all(), 1.0, math.nan)
            # All strategies average gradients over the ranks.
            self.manual_backward(loss * self.ranks.world_size)
        if batch.last:
            self.last_result = self._update()

    def _update(self) -> StepResult:
        optimizer = self.optimizer
        lr = learning_rate(self.step, self.config.optim)
        set_learning_rate(optimizer, lr)
        grad_norm = self.steps.update(self.model, optimizer, self.config.optim.clip)
        l_lang, l_pathway = self.ranks.sums(self._sums.tolist())
        loss = l_lang + self.config.objective.gamma * l_pathway
        self.step += 1
        return StepResult(self._info, loss, l_lang, l_pathway, grad_norm, lr, math.isfinite(grad_norm))

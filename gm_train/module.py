"""The LightningModule: one training step, read from top to bottom."""

import math
from dataclasses import dataclass

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from gm_train.batches import MicroBatch
from gm_train.config import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.language import cross_entropy_sum
from gm_train.objective.pathway import pathway_loss_sum
from gm_train.optim import build_optimizer, learning_rate


@dataclass(frozen=True)
class StepResult:
    """What a finished optimizer step reports.

    Attributes:
        l_lang, l_pathway: means over the step's targets and pairs, nats; `loss` is their weighted sum.
        grad_norm: norm of the whole gradient before clipping.
        lr: learning rate that the step used.
        finite: False if the step was skipped because a number was not finite.
    """

    loss: float
    l_lang: float
    l_pathway: float
    grad_norm: float
    lr: float
    finite: bool


def loss_sums(model: GeneMamba, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums of L_lang over the targets and of L_pathway over the pairs of a micro-batch (scalars)."""
    states = model(batch.input_ids, batch.segment).flatten(0, 1)
    # The output layer sees the predicted positions alone.
    lang = cross_entropy_sum(model.logits(states[batch.target_at]), batch.targets)
    if batch.drawn.shape[1] == 0:
        return lang, lang.new_zeros(())
    return lang, pathway_loss_sum(states, batch.drawn, batch.positive, temperature)


class GeneMambaModule(L.LightningModule):
    """Trains a GeneMamba on `L_lang + gamma * L_pathway`.

    Both losses are sums divided by counts over the whole step, so that the gradient does not depend on how the step is
    cut into micro-batches. A batch of Lightning's is a micro-batch; the optimizer steps on a step's last one.

    Args:
        config: the run's configuration, `optim.schedule_steps` set.
        vocabulary_size: number of tokens.
        step: optimizer steps already behind the run.
    """

    def __init__(self, config: Config, vocabulary_size: int, step: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.step = step
        self.model = GeneMamba(config.model, vocabulary_size)
        self._sums = torch.zeros(2)
        self.last_result: StepResult

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.config.optim)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, out of Lightning's wrapper."""
        wrapped = self.optimizers()
        assert isinstance(wrapped, LightningOptimizer)
        return wrapped.optimizer

    def training_step(self, batch: MicroBatch, batch_idx: int) -> None:
        objective = self.config.objective
        if batch.first:
            self._sums = torch.zeros(2, device=self.device)
        n_targets, n_pairs = max(1, batch.info.n_targets), max(1, batch.info.n_pairs)

        lang, pathway = loss_sums(self.model, batch, objective.temperature)
        self.manual_backward(lang / n_targets + objective.gamma * pathway / n_pairs)
        self._sums += torch.stack([lang.detach() / n_targets, pathway.detach() / n_pairs])
        if batch.last:
            self.last_result = self._update()

    def _update(self) -> StepResult:
        optimizer = self.optimizer
        lr = learning_rate(self.step, self.config.optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        l_lang, l_pathway, grad_norm = torch.stack([*self._sums, norm]).tolist()
        loss = l_lang + self.config.objective.gamma * l_pathway
        # Clipping by a norm that is not finite has already spoiled the gradient; it must never reach the weights.
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return StepResult(loss, l_lang, l_pathway, grad_norm, lr, finite)


@torch.no_grad()
def validation_losses(
    model: GeneMamba, batches: list[MicroBatch], gamma: float, temperature: float
) -> dict[str, float]:
    """Mean losses over held-out batches: `val_loss`, `val_l_lang`, `val_l_pathway` (nats)."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = torch.zeros(2)
    for batch in batches:
        moved = move_data_to_device(batch, device)
        sums += torch.stack(loss_sums(model, moved, temperature)).float().cpu()
    model.train(was_training)
    lang = float(sums[0]) / max(1, batches[0].info.n_targets)
    pathway = float(sums[1]) / max(1, batches[0].info.n_pairs)
    return {"val_loss": lang + gamma * pathway, "val_l_lang": lang, "val_l_pathway": pathway}

"""The LightningModule: GeneMamba, its losses and its optimizer, for a Lightning Trainer of one's own."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from data_shards.files.location import location_of
from data_shards.hashing import fold
from data_shards.rows.store_reader import StoreReader
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.config.check import ConfigError
from gm_train.config.load import config_from_settings, flat
from gm_train.config.schema import Config
from gm_train.loading.cell_batches import CellBatch
from gm_train.loading.read_classes import read_cell_classes
from gm_train.model.build_model import build_model
from gm_train.model.classes import Classes
from gm_train.model.compile import prepare_blocks
from gm_train.model.genemamba import cell_embeddings
from gm_train.objective.batches import MicroBatch
from gm_train.objective.loss import computing_in, loss_sums, target_logits
from gm_train.optim import build_optimizer, learning_rate
from gm_train.strategies.fsdp2 import shard_layers
from gm_train.train.validation import mean_losses
from gm_train.weights.init_from import initial_weights


class GeneMambaModule(L.LightningModule):
    """Trains a GeneMamba on `L_lang + gamma * L_pathway`, with the batches of `CellDataModule`.

    Both losses are sums divided by counts over the whole step on all ranks. So the gradient does not depend on how the
    step is split into ranks and micro-batches. A Lightning batch is a micro-batch. Logged at each step: `loss`,
    `l_lang`, `l_pathway` (nats) and `grad_norm`; at each validation: `val_loss`, `val_l_lang`, `val_l_pathway`.

    With `task.name=classify`, it learns a label of the cells instead: `loss` and `val_loss` are cross-entropies,
    weighted by class, and `val_accuracy` is logged in place of the parts.

    Args:
        config: a checked configuration, as `load_config` returns it, or its settings by their full names, as Lightning
            stores them in its checkpoints; it is copied.
        vocabulary_size: number of tokens; None: that of `data.store`.
        classes: what a run with `task.name=classify` learns, also as Lightning stores them; None: those of the store.

    Attributes:
        config: the configuration.
        model: the GeneMamba itself.

    Raises:
        DataError: the store's tokenizer cannot be read, or the weights that `model.init_from` names do not fit.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any],
        vocabulary_size: int | None = None,
        classes: Classes | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = copy.deepcopy(config) if isinstance(config, Config) else config_from_settings(config)
        tokenizer = start = None
        if vocabulary_size is None:
            tokenizer = Tokenizer.load(location_of(self.config.data.store))
            vocabulary_size = tokenizer.vocabulary.size
            start = initial_weights(self.config, tokenizer, None)
        if classes is None and self.config.task.name == "classify":
            data = self.config.data
            classes = read_cell_classes(StoreReader(data.store), self.config.task, data.weights).classes
        if isinstance(classes, Mapping):
            classes = Classes.from_json(classes)
        kept_classes = classes and classes.to_json()
        self.save_hyperparameters(
            {"config": flat(self.config), "vocabulary_size": vocabulary_size, "classes": kept_classes}
        )
        # The seed decides the initial weights only; data, masks and pairs are drawn by counter-based hashes.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(self.config.run.seed) >> 1)
            self.model = build_model(self.config, vocabulary_size, classes)
        if start is not None and tokenizer is not None:
            start.load_into(self.model, tokenizer)
        self._is_configured = False
        self._counts = torch.ones(2)
        self._sums = torch.zeros(2)
        self._validation = torch.zeros(4)

    def configure_model(self) -> None:
        """Prepare the blocks (compilation, for example), and shard the model if the Trainer's strategy is FSDP2.

        Raises:
            ConfigError: the Trainer's strategy does not sum the gradients of all ranks as this module needs it.
        """
        # Lightning calls this before each fit, validation and prediction, and as it loads a module without a Trainer.
        if self._is_configured or self._trainer is None:
            return
        self._is_configured = True
        _refuse_other_strategies(self.trainer)
        prepare_blocks(self.model, self.config.trainer)
        if self.device_mesh is not None:
            shard_layers(self.model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        """Build AdamW and the schedule of the learning rate.

        Raises:
            ConfigError: the Trainer's `max_steps` are fewer than the warm-up, and `optim.schedule_steps` is not set.
        """
        optim = self.config.optim
        if optim.schedule_steps is None:
            optim.schedule_steps = (
                self.trainer.max_steps if self.trainer.max_steps > 0 else self.config.trainer.max_steps
            )
            if optim.schedule_steps < optim.warmup_steps:
                raise ConfigError(
                    [
                        f"optim.warmup_steps={optim.warmup_steps}: is longer than the {optim.schedule_steps} steps of "
                        "the Trainer: lower it, or set optim.schedule_steps"
                    ]
                )
        optimizer = build_optimizer(self.model, optim, self.config.task.head_lr_factor)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, optim) / optim.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the length of the schedule: a longer Trainer that resumes must not change it."""
        checkpoint["schedule_steps"] = self.config.optim.schedule_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the schedule of the first Trainer."""
        self.config.optim.schedule_steps = checkpoint["schedule_steps"]

    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """Compute a micro-batch's share of the step's loss, scaled for what Lightning divides it by."""
        if batch.first:
            counts = torch.tensor([batch.info.n_targets, batch.info.n_pairs], device=self.device)
            self._counts = self._over_ranks(counts).clamp(min=1)
            self._sums = torch.zeros(2, device=self.device)
        with computing_in(self.config.trainer.precision, self.device):
            sums = torch.stack(loss_sums(self.model, batch, self.config.objective))
        shares = sums / self._counts
        self._sums += shares.detach()
        if batch.last:
            l_lang, l_pathway = self._over_ranks(self._sums.double()).unbind()
            loss = l_lang + self.config.objective.gamma * l_pathway
            self.log("loss", loss, prog_bar=True)
            if self.model.classifier is None:
                self.log_dict({"l_lang": l_lang, "l_pathway": l_pathway})
        # The strategy averages gradients over the ranks, and Lightning divides by the number of accumulated batches.
        per_step = batch.info.n_slots // batch.input_ids.numel()  # all micro-batches of a step are equally large
        share: Tensor = shares[0] + self.config.objective.gamma * shares[1]
        return share * (self.trainer.world_size * per_step)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the norm of the whole gradient to `optim.clip`, unless the Trainer clips by itself."""
        if self.automatic_optimization and self.trainer.gradient_clip_val is None:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
            self.log("grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def on_validation_epoch_start(self) -> None:
        """Begin to sum up."""
        self._validation = torch.zeros(4, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[MicroBatch, bool], batch_idx: int) -> None:
        """Add the losses of a batch of held-out cells."""
        micro_batch, is_own = batch
        if self.model.classifier is not None:
            self._add_classes(micro_batch, is_own)
            return
        with computing_in(self.config.trainer.precision, self.device):
            lang, pathway = loss_sums(self.model, micro_batch, self.config.objective)
        if is_own:
            counts = len(micro_batch.targets), int(micro_batch.positive.sum())
            self._validation += torch.tensor([float(lang), float(pathway), *counts], device=self.device)

    def _add_classes(self, batch: MicroBatch, is_own: bool) -> None:
        assert self.model.classifier is not None
        weights = self.model.classifier.class_weights
        with computing_in(self.config.trainer.precision, self.device):
            logits = target_logits(self.model, self.model(batch.input_ids, batch.segment), batch)
        if is_own:
            # Held-out cells may be of classes that the run does not learn.
            known = batch.targets < len(weights)
            logits, targets = logits[known], batch.targets[known]
            loss = torch.nn.functional.cross_entropy(logits, targets, weights, reduction="sum")
            n_correct = (logits.argmax(1) == targets).sum()
            self._validation += torch.stack([loss, n_correct, known.sum(), torch.zeros_like(loss)])

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses over the held-out cells of all ranks."""
        sums = self._over_ranks(self._validation).tolist()
        if self.model.classifier is not None:
            loss, n_correct, n_cells, _ = sums
            # As in `fit`, NaN if no validation cell is of a class that is learned.
            scores = {"val_loss": loss / n_cells if n_cells else math.nan}
            scores["val_accuracy"] = n_correct / n_cells if n_cells else math.nan
        else:
            lang, pathway, n_targets, n_pairs = sums
            scores = mean_losses(lang, pathway, n_targets, n_pairs, self.config.objective.gamma)
        self.log("val_loss", scores.pop("val_loss"), prog_bar=True)
        self.log_dict(scores)

    def predict_step(self, batch: CellBatch, batch_idx: int) -> dict[str, Any]:
        """Embed cells: the mean of the final states over the tokens of each cell.

        Returns:
            `embedding` float32 (n_cells, d_model), and each cell's `data_set`, `row` in it, `cell_id` and `split`.
        """
        with computing_in(self.config.trainer.precision, self.device):
            states = self.model(batch.input_ids, batch.segment)
        embeddings = cell_embeddings(states, batch.segment).float()
        n_cells = len(embeddings) if batch.counts else 0
        return {
            "embedding": embeddings[:n_cells],
            "data_set": [batch.data_set] * n_cells,
            "row": batch.row[:n_cells],
            "cell_id": batch.cell_id[:n_cells],
            "split": batch.split[:n_cells],
        }

    def _over_ranks(self, values: Tensor) -> Tensor:
        summed = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed


def _refuse_other_strategies(trainer: L.Trainer) -> None:
    strategy, why = trainer.strategy, None
    if isinstance(strategy, ModelParallelStrategy):
        if strategy.device_mesh["data_parallel"].size() != trainer.world_size:
            why = "the ranks would train on different cells without summing their gradients"
    elif isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        why = "this module does not support it; `gm-train fit` has fsdp2, zero2 and zero3"
    if why is not None:
        raise ConfigError(
            [
                f'the Trainer\'s strategy {type(strategy).__name__}: {why}. Use strategy="ddp", or for FSDP2 strategy='
                f"ModelParallelStrategy(data_parallel_size={trainer.world_size}, tensor_parallel_size=1)"
            ]
        )

"""Scores on held-out cells."""

from dataclasses import dataclass

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from sklearn.metrics import f1_score

from gm_train.config.schema import Config
from gm_train.evaluation.calibration import calibrate
from gm_train.loading.rank_batches import Turns
from gm_train.model.classes import Calibration
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.batches import MicroBatch
from gm_train.objective.loss import computing_in, loss_sums, target_logits
from gm_train.ranks.ranks import Ranks


@dataclass(frozen=True)
class Validation:
    """The result of a validation.

    Attributes:
        scores: by their columns in `metrics.jsonl`; `val_loss` is always among them.
        calibration: of a run that learns a label; None for other runs.
    """

    scores: dict[str, float]
    calibration: Calibration | None = None


@torch.no_grad()
def validate(model: GeneMamba, batches: list[MicroBatch], config: Config, ranks: Ranks) -> Validation:
    """Score held-out batches: mean losses, or in a run that learns a label also accuracy and macro-F1.

    Args:
        model: whole or sharded.
        batches: at least one; the same on every rank, except for damaged cells.
        config: of the run.
        ranks: this process among the others.
    """
    was_training = model.training
    model.eval()
    try:
        score = _losses if model.classifier is None else _class_scores
        return score(model, batches, config, ranks)
    finally:
        model.train(was_training)


def mean_losses(lang: float, pathway: float, n_targets: float, n_pairs: float, gamma: float) -> dict[str, float]:
    """The losses `val_loss`, `val_l_lang`, `val_l_pathway` (nats) from sums over all ranks.

    Args:
        lang, pathway: sums of both losses.
        n_targets, n_pairs: what they are sums over.
        gamma: weight of L_pathway.
    """
    lang, pathway = lang / max(1, n_targets), pathway / max(1, n_pairs)
    return {"val_loss": lang + gamma * pathway, "val_l_lang": lang, "val_l_pathway": pathway}


def _losses(model: GeneMamba, batches: list[MicroBatch], config: Config, ranks: Ranks) -> Validation:
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64)
    n_targets = n_pairs = 0
    for batch, is_own in Turns(batches, ranks):
        batch = move_data_to_device(batch, device)
        with computing_in(config.trainer.precision, device):
            losses = loss_sums(model, batch, config.objective)
        if is_own:
            sums += torch.stack(losses).double().cpu()
            n_targets += len(batch.targets)
            n_pairs += int(batch.positive.sum())
    # Counts are of the batches that were scored: damaged cells may differ between ranks.
    lang, pathway, n_targets, n_pairs = ranks.sums([*sums.tolist(), n_targets, n_pairs])
    return Validation(mean_losses(lang, pathway, n_targets, n_pairs, config.objective.gamma))


def _class_scores(model: GeneMamba, batches: list[MicroBatch], config: Config, ranks: Ranks) -> Validation:
    device = next(model.parameters()).device
    own = []
    for number, (batch, is_own) in enumerate(Turns(batches, ranks)):
        batch = move_data_to_device(batch, device)
        with computing_in(config.trainer.precision, device):
            logits = target_logits(model, model(batch.input_ids, batch.segment), batch)
        if is_own:
            own.append((number * ranks.world_size + ranks.global_rank, logits.cpu(), batch.targets.cpu()))
    # In the order of the batches, so that sums do not depend on the number of ranks.
    parts = sorted((part for of_rank in ranks.gather(own) for part in of_rank), key=lambda part: part[0])
    logits, targets = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    assert model.classifier is not None
    weights = model.classifier.class_weights.cpu()
    # Ranks decide by these numbers, and the last bits may differ between processors: rank 0 computes them for all.
    return ranks.from_first(lambda: class_scores(logits, targets, weights, config.task.max_error))


def class_scores(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, max_error: float) -> Validation:
    """Score the logits of all labelled validation cells.

    Args:
        logits: float32 (n_cells, n_classes), on the CPU.
        targets: int64 (n_cells,), the classes; the number of classes for cells of other ones.
        weights: float32 (n_classes,), weight of each class in the loss.
        max_error: `task.max_error`.
    """
    known = targets < len(weights)
    n_known = max(1, int(known.sum()))
    losses = torch.nn.functional.cross_entropy(logits[known], targets[known], weights, reduction="sum")
    guesses, truth = logits[known].argmax(1).numpy(), targets[known].numpy()
    scores = {
        "val_loss": float(losses) / n_known if known.any() else float("nan"),
        "val_accuracy": float((guesses == truth).sum()) / n_known,
        "val_macro_f1": macro_f1(truth, guesses),
    }
    return Validation(scores, calibrate(logits.numpy(), targets.numpy(), max_error))


def macro_f1(truth: np.ndarray, guesses: np.ndarray) -> float:
    """Mean F1 of the classes that occur in `truth`; both int64 (n_cells,). NaN without cells."""
    if not len(truth):
        return float("nan")
    return float(f1_score(truth, guesses, labels=np.unique(truth), average="macro", zero_division=0.0))

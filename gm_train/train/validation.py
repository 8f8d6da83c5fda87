"""Losses on held-out cells."""

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from gm_train.config.schema import Config
from gm_train.loading.rank_batches import Turns
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.batches import MicroBatch
from gm_train.objective.loss import computing_in, loss_sums
from gm_train.ranks.ranks import Ranks


@torch.no_grad()
def validation_losses(model: GeneMamba, batches: list[MicroBatch], config: Config, ranks: Ranks) -> dict[str, float]:
    """Mean losses over held-out batches: `val_loss`, `val_l_lang`, `val_l_pathway` (nats).

    Args:
        model: whole or sharded.
        batches: at least one; the same on every rank, except for damaged cells.
        config: of the run.
        ranks: this process among the others.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    n_targets = n_pairs = 0
    for batch, is_own in Turns(batches, ranks):
        batch = move_data_to_device(batch, device)
        with computing_in(config.trainer.precision, device):
            losses = loss_sums(model, batch, config.objective.temperature)
        if is_own:
            sums += torch.stack(losses).double().cpu()
            n_targets += len(batch.targets)
            n_pairs += int(batch.positive.sum())
    model.train(was_training)
    # Counts are of the batches that were scored: damaged cells may differ between ranks.
    lang, pathway, n_targets, n_pairs = ranks.sums([*sums.tolist(), n_targets, n_pairs])
    lang, pathway = lang / max(1, n_targets), pathway / max(1, n_pairs)
    return {"val_loss": lang + config.objective.gamma * pathway, "val_l_lang": lang, "val_l_pathway": pathway}

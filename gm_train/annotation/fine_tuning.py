"""The settings of a fine-tuning: from a checkpoint and a store to the configuration of `gm-train fit`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.store.manifest import Manifest
from gm_train.checkpoint.find import Checkpoint
from gm_train.config.load import config_from_file, flat
from gm_train.config.schema import Config


@dataclass(frozen=True)
class Protocol:
    """How a label is learned.

    Attributes:
        settings: settings by their full names.
        cells: approximate number of cells of a step.
        epochs: how often each training cell is read.
        lr_ratio: peak learning rate / that of the pretraining; None: `optim.lr` is in `settings`.
        warmup: share of the steps in which the learning rate rises.
    """

    settings: dict[str, Any]
    cells: int
    epochs: int
    lr_ratio: float | None
    warmup: float


#: `published` is the protocol of GeneMamba's cell type annotation as far as we could read it in the published code:
#: Adam at 1e-4, unweighted cross-entropy, 24 cells a step, 5 epochs, an MLP of four layers. It has no early stopping.
PROTOCOLS = {
    "default": Protocol({"trainer.patience": 6}, 32, 40, 0.1, 0.05),
    "published": Protocol(
        {
            "task.balanced": False,
            "task.head_layers": 4,
            "task.head_width": 512,
            "task.head_lr_factor": 1.0,
            "optim.lr": 1e-4,
            "optim.min_lr_ratio": 1.0,
            "optim.betas": [0.9, 0.999],
            "optim.weight_decay": 0.0,
        },
        24,
        5,
        None,
        0.0,
    ),
}
#: Validations in an epoch.
_VALIDATIONS = 2
#: Sections whose settings are those of the checkpoint: they decide what its weights mean.
_KEPT = ("model",)


def fine_tuning_settings(
    checkpoint: Checkpoint, manifest: Manifest, protocol: Protocol, label: str, frozen: bool, epochs: int | None
) -> dict[str, Any]:
    """Choose the settings of a fine-tuning that differ from the defaults, by their full names.

    Args:
        checkpoint: the model to begin with.
        manifest: of the store with the labelled cells.
        protocol: how the label is learned.
        label: column of obs.
        frozen: whether only the classifier is trained.
        epochs: how often each training cell is read; None: as the protocol says.
    """
    before = config_from_file(checkpoint.path / "config.yaml")
    defaults = flat(Config())
    settings: dict[str, Any] = {
        key: value
        for key, value in flat(before).items()
        if key.split(".")[0] in _KEPT and key != "model.init_from" and value != defaults[key]
    }
    settings |= {"model.init_from": str(Path(checkpoint.path).resolve()), "trainer.precision": before.trainer.precision}
    settings |= {"task.name": "classify", "task.label": label, "task.frozen": frozen}
    settings |= _rows(before, manifest, protocol.cells)
    n_train = sum(entry.n_train for entry in manifest.datasets)
    per_epoch = max(1, round(n_train / protocol.cells))
    steps = per_epoch * (epochs or protocol.epochs)
    every = max(1, per_epoch // _VALIDATIONS)
    settings |= {
        "trainer.max_steps": steps,
        "trainer.validate_every_steps": every,
        "checkpoint.every_steps": every,
        "optim.warmup_steps": math.ceil(protocol.warmup * steps),
    }
    if protocol.lr_ratio is not None:
        settings["optim.lr"] = before.optim.lr * protocol.lr_ratio
    return settings | protocol.settings


def _rows(before: Config, manifest: Manifest, n_cells: int) -> dict[str, Any]:
    """The rows of a step with about `n_cells` cells: at most four lanes, and forward passes no larger than before."""
    row_length = max(before.data.row_length, manifest.top_k)
    cells_per_row = max(1.0, row_length * manifest.n_cells / manifest.n_tokens)
    rows = max(1, round(n_cells / cells_per_row))
    lanes = min(4, rows)
    rows = lanes * round(rows / lanes)
    settings: dict[str, Any] = {
        "data.row_length": row_length,
        "data.lanes": lanes,
        "data.rows_per_lane": rows // lanes,
    }
    most = before.data.micro_rows
    if most is not None:
        settings["data.micro_rows"] = max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)
    return settings

"""The settings of a fine-tuning: from a checkpoint and a store to the configuration of `gm-train fit`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.hashing import mix64
from data_shards.rows.packing import arrange
from data_shards.store.arrays import open_array
from data_shards.store.manifest import Manifest
from gm_train.checkpoint.find import Checkpoint
from gm_train.config.load import config_from_file, flat
from gm_train.config.schema import Config


@dataclass(frozen=True)
class TuningProtocol:
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
    "default": TuningProtocol({"trainer.patience": 6, "task.head_lr_factor": 50.0}, 32, 40, 0.03, 0.05),
    "published": TuningProtocol(
        {
            "task.balanced": False,
            "task.head_layers": 4,
            "task.head_width": 512,
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
#: Cells of a data set whose lengths say how many cells a row holds.
_SAMPLE = 8_192
#: One group of cells, whose rows are permuted by this key.
_KEY = np.zeros(1, np.uint64)


def fine_tuning_settings(
    checkpoint: Checkpoint, store: Path, protocol: TuningProtocol, label: str, frozen: bool, epochs: int | None
) -> dict[str, Any]:
    """Choose the settings of a fine-tuning that differ from the defaults, by their full names.

    Args:
        checkpoint: the model to begin with.
        store: the store with the labelled cells.
        protocol: how the label is learned.
        label: column of obs.
        frozen: whether only the classifier is trained.
        epochs: how often each training cell is read; None: as the protocol says.
    """
    before, manifest = config_from_file(checkpoint.path / "config.yaml"), Manifest.load(store)
    defaults = flat(Config())
    settings: dict[str, Any] = {
        key: value
        for key, value in flat(before).items()
        if key.startswith("model.") and key != "model.init_from" and value != defaults[key]
    }
    settings |= {"model.init_from": str(Path(checkpoint.path).resolve()), "trainer.precision": before.trainer.precision}
    settings |= {"task.name": "classify", "task.label": label, "task.frozen": frozen}
    per_row = _cells_per_row(store, manifest)
    rows = _rows(before, manifest.top_k, protocol.cells / per_row)
    settings |= rows
    # A step takes whole rows, so it rarely has as many cells as the protocol says.
    cells = rows["data.lanes"] * rows["data.rows_per_lane"] * per_row
    n_train = sum(entry.n_train for entry in manifest.datasets)
    steps = max(1, round((epochs or protocol.epochs) * n_train / cells))
    per_epoch = max(1, round(n_train / cells))
    every = max(1, per_epoch // _VALIDATIONS)
    settings |= {
        "trainer.max_steps": steps,
        "trainer.validate_every_steps": every,
        "checkpoint.every_steps": every,
        "optim.warmup_steps": math.ceil(protocol.warmup * steps),
    }
    if protocol.lr_ratio is not None:
        settings["optim.lr"] = float(f"{before.optim.lr * protocol.lr_ratio:.3g}")
    return settings | protocol.settings


def _cells_per_row(store: Path, manifest: Manifest) -> float:
    """How many cells a row of `top_k` tokens holds, from packing the first cells of each data set."""
    parts = []
    for entry in manifest.datasets:
        indptr = open_array(store, entry.name, "indptr").read(0, min(entry.n_cells, _SAMPLE) + 1)
        parts.append(np.diff(indptr))
    lengths = np.concatenate(parts).astype(np.int64)
    _, cells_of_row = arrange(lengths, mix64(np.arange(len(lengths), dtype=np.uint64)), _KEY, manifest.top_k)
    return float(cells_of_row.mean())


def _rows(before: Config, row_length: int, wanted: float) -> dict[str, Any]:
    """About as many rows as wanted: of at most four lanes, in forward passes no larger than before."""
    rows = max(1, round(wanted))
    lanes = min(4, rows)
    rows = lanes * round(rows / lanes)
    settings: dict[str, Any] = {
        "data.row_length": row_length,
        "data.lanes": lanes,
        "data.rows_per_lane": rows // lanes,
    }
    if before.data.micro_rows is not None:
        most = max(1, before.data.micro_rows * before.data.row_length // row_length)
        settings["data.micro_rows"] = max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)
    return settings

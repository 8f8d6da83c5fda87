"""Convert a ZeRO checkpoint to parameter names, so that any strategy on any number of ranks can resume from it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import BY_NAME, Checkpoint
from gm_train.checkpoint.known_cells import kept_manifest
from gm_train.checkpoint.save import About, save_checkpoint
from gm_train.checkpoint.state import save_by_name
from gm_train.config.load import config_from_file
from gm_train.loading.position import Position
from gm_train.model.genemamba import GeneMamba
from gm_train.optim import build_optimizer
from gm_train.ranks.ranks import Ranks
from gm_train.run.lock import RunLock
from gm_train.strategies.zero import MOMENTS, TAG

#: Name of the model within the LightningModule that DeepSpeed saves.
_PREFIX = "model."


def reshard(checkpoint: Checkpoint, lock: RunLock) -> Checkpoint:
    """Replace a checkpoint by one that stores the same weights, moments and position under parameter names.

    DeepSpeed's own conversion joins the pieces of the ranks. The old checkpoint is deleted once the new one is
    committed.

    Args:
        checkpoint: a checkpoint of any form.
        lock: the lock of its run directory.

    Returns:
        The new checkpoint; the given one if it is under parameter names already.

    Raises:
        DataError: the checkpoint cannot be converted or written; it is then unchanged.
    """
    if checkpoint.form == BY_NAME:
        return checkpoint
    config = config_from_file(checkpoint.path / "config.yaml")
    tokenizer = Tokenizer.load(checkpoint.path / "tokenizer")
    identity = json.loads((checkpoint.path / "identity.json").read_text())
    store_hash = json.loads((checkpoint.path / "position.json").read_text())["store_hash"]
    model = GeneMamba(config.model, tokenizer.vocabulary.size)
    optimizer = build_optimizer(model, config.optim)
    # Beside the checkpoint: a disk that holds checkpoints has room for these files.
    with tempfile.TemporaryDirectory(prefix=".reshard-", dir=checkpoint.path.parent) as folder:
        universal = Path(folder) / "universal"
        _convert(checkpoint, universal)
        _fill(model, optimizer, universal, _updates(checkpoint))
    return save_checkpoint(
        checkpoint.path.parent,
        lambda state: save_by_name(state, model, optimizer),
        BY_NAME,
        Position.load(checkpoint.path / "position.json"),
        About(config, identity, tokenizer, store_hash, kept_manifest(checkpoint.path)),
        checkpoint.val_loss,
        Ranks(),
        lock,
        replace=True,
    )


def _convert(checkpoint: Checkpoint, folder: Path) -> None:
    """Write DeepSpeed's universal form: a folder for each parameter, with its weights and moments as whole tensors."""
    source = str(checkpoint.state / TAG)
    words = ["--input_folder", source, "--output_folder", str(folder), "--num_extract_workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words, "--num_merge_workers", "1"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise DataError(
            f"{checkpoint.path}: DeepSpeed could not convert its state ({lines[-1]}); the checkpoint is unchanged"
        )


def _fill(model: GeneMamba, optimizer: torch.optim.Optimizer, folder: Path, updates: int) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = {key: _tensor(folder / "zero" / f"{_PREFIX}{name}" / f"{key}.pt") for key in ("fp32", *MOMENTS)}
            parameter.copy_(parts["fp32"].view_as(parameter))
            moments: dict[str, Any] = {key: parts[key].view_as(parameter).clone() for key in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(updates)), **moments}


def _tensor(path: Path) -> Tensor:
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensor: Tensor = content["param"] if isinstance(content, dict) else content
    return tensor


def _updates(checkpoint: Checkpoint) -> int:
    """Read AdamW's count of updates from the old files: DeepSpeed's conversion drops it."""
    file = sorted((checkpoint.state / TAG).glob("*_model_states.pt"))[0]
    return int(torch.load(file, map_location="cpu", weights_only=True)["updates"])

"""Checkpoints that are whole or do not count.

A checkpoint is a directory. Its state is written by torch.distributed.checkpoint under parameter names, so that it
does not know the number of ranks that wrote it; `COMMIT` comes last and lists every file with its size and SHA-256.
Whatever has no COMMIT is not a checkpoint; whatever does not match its COMMIT is passed over, loudly.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from data_shards.errors import DataError
from data_shards.tokenizer import Tokenizer
from gm_train.config import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.position import Position
from gm_train.settings import config_from_file

log = logging.getLogger(__name__)

COMMIT = "COMMIT"
_NAME = re.compile(r"step-(\d{8,})")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _single_process() -> Iterator[None]:
    """Torch warns at every save and load that there is one process; here that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        yield


def _sync(path: Path) -> None:
    """Bring a file or a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        path: its directory.
        step: the step that it was taken after.
        val_loss: the last validation loss at or before that step, if there was one.
    """

    path: Path
    step: int
    val_loss: float | None

    def damage(self) -> str | None:
        """What is wrong with its files, or None if every one has the size and hash of the COMMIT."""
        listed = json.loads((self.path / COMMIT).read_text())["files"]
        for name, entry in listed.items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["size"]:
                return f"{name} has {file.stat().st_size:,} bytes, not {entry['size']:,}"
            if _sha256(file) != entry["sha256"]:
                return f"{name} does not have the hash that was committed"
        return None


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Committed checkpoints of a run, oldest first; files are not verified."""
    found = []
    for path in directory.glob("step-*"):
        if _NAME.fullmatch(path.name) and (path / COMMIT).is_file():
            try:
                commit = json.loads((path / COMMIT).read_text())
                found.append(Checkpoint(path, commit["step"], commit["val_loss"]))
            except (ValueError, KeyError) as error:
                log.warning("%s: its COMMIT is damaged (%s), so it is passed over", path, error)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest_whole(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are as committed; damaged ones are passed over with a warning."""
    for checkpoint in reversed(list_checkpoints(directory)):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        log.warning("%s: %s, so this checkpoint is passed over", checkpoint.path, damage)
    return None


def save_checkpoint(
    directory: Path,
    model: GeneMamba,
    optimizer: torch.optim.Optimizer,
    position: Position,
    config: Config,
    identity: dict[str, Any],
    tokenizer: Tokenizer,
    store_hash: str,
    val_loss: float | None,
) -> Checkpoint:
    """Write and commit `step-<step>` into `directory`.

    Raises:
        DataError: the disk is full or cannot be written. Earlier checkpoints stay as they are, and what was written
            of this one is removed.
    """
    path = directory / f"step-{position.step:08d}"
    try:
        if path.exists():
            # Left by a process that died before its COMMIT, or found damaged on resume.
            shutil.rmtree(path)
        path.mkdir(parents=True)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        with _single_process():
            save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=path / "state", no_dist=True)
        position.save(path / "position.json", config.run.seed, store_hash)
        (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        (path / "identity.json").write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")
        (path / "tokenizer").mkdir()
        tokenizer.save(path / "tokenizer")
        _commit(path, position.step, val_loss)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(path, ignore_errors=True)
        raise DataError(
            f"{path}: the checkpoint could not be written ({str(error).strip().splitlines()[0]}); "
            "the one before it is whole: free disk space or mend the permissions, then start the same command again"
        ) from error
    return Checkpoint(path, position.step, val_loss)


def _commit(path: Path, step: int, val_loss: float | None) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = {str(file.relative_to(path)): {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files}
    for file in files:
        _sync(file)
    for folder in {file.parent for file in files}:
        _sync(folder)
    temporary = path / f".{COMMIT}"
    temporary.write_text(json.dumps({"step": step, "val_loss": val_loss, "files": listed}, indent=1) + "\n")
    _sync(temporary)
    temporary.rename(path / COMMIT)
    _sync(path)
    _sync(path.parent)


def load_training_state(checkpoint: Checkpoint, model: GeneMamba, optimizer: torch.optim.Optimizer) -> Position:
    """Load weights and optimizer state in place; returns the position that they belong to."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _single_process():
        load(state, checkpoint_id=checkpoint.path / "state", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return Position.load(checkpoint.path / "position.json")


def prune(directory: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints and the one of the best validation loss."""
    checkpoints = list_checkpoints(directory)
    kept = {checkpoint.path for checkpoint in checkpoints[-keep_last:]}
    scored = [checkpoint for checkpoint in checkpoints if checkpoint.val_loss is not None]
    if scored:
        kept.add(min(scored, key=lambda checkpoint: (checkpoint.val_loss, -checkpoint.step)).path)
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            # COMMIT goes first: what is half deleted must not look whole.
            (checkpoint.path / COMMIT).unlink()
            shutil.rmtree(checkpoint.path)


def open_checkpoint(path: Path) -> Checkpoint:
    """A verified checkpoint from its directory, or the newest whole one from a run's directory.

    Raises:
        DataError: there is none, or its files are not what was committed.
    """
    if (path / COMMIT).is_file():
        commit = json.loads((path / COMMIT).read_text())
        checkpoint = Checkpoint(path, commit["step"], commit["val_loss"])
        if damage := checkpoint.damage():
            raise DataError(f"{path}: {damage}: this checkpoint is damaged, use another one of the run")
        return checkpoint
    newest = latest_whole(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if newest is None:
        raise DataError(f"{path}: neither a committed checkpoint nor a run directory that holds one")
    return newest


def load_model(path: str | Path) -> tuple[GeneMamba, Tokenizer, Config]:
    """The model of a checkpoint (or of a run's newest one) in evaluation mode, its tokenizer and its configuration.

    Raises:
        DataError: as `open_checkpoint`.
    """
    checkpoint = open_checkpoint(Path(path))
    config = config_from_file(checkpoint.path / "config.yaml")
    tokenizer = Tokenizer.load(checkpoint.path / "tokenizer")
    model = GeneMamba(config.model, tokenizer.vocabulary.size)
    state = {"model": model.state_dict()}
    with _single_process():
        load(state, checkpoint_id=checkpoint.path / "state", no_dist=True)
    model.load_state_dict(state["model"])
    return model.eval(), tokenizer, config

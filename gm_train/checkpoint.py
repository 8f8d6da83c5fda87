"""Checkpoints that are whole or do not count.

A checkpoint is a directory. Its state is written by torch.distributed.checkpoint under parameter names, so that it
does not know the number of ranks that wrote it; `COMMIT` comes last and lists every file with its size and SHA-256.
Whatever has no COMMIT is not a checkpoint; whatever does not match its COMMIT is passed over, loudly.
"""

import contextlib
import hashlib
import json
import logging
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
from data_shards.output import flush
from data_shards.tokenizer import Tokenizer
from gm_train.config import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.position import Position
from gm_train.settings import config_from_file

log = logging.getLogger(__name__)

COMMIT = "COMMIT"
SCHEMA = 1
_NAME = re.compile(r"step-(\d{8,})")
_PARTIAL, _DAMAGED = ".partial", ".damaged"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _single_process() -> Iterator[None]:
    """Torch warns at every save and load that there is one process; here that is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        yield


class UnreadableCheckpoint(DataError):
    """A checkpoint of another version, or one that the disk did not give: it may well be whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        path: its directory.
        step: the step that it was taken after.
        val_loss: the validation loss at that step, if it was validated.
        files: size in bytes and SHA-256 of every file, by name within the directory.
    """

    path: Path
    step: int
    val_loss: float | None
    files: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read the COMMIT of a directory.

        Raises:
            DataError: it is missing or torn.
            UnreadableCheckpoint: it is of another version, or the disk cannot be read.
        """
        try:
            content = json.loads((path / COMMIT).read_text())
            schema = int(content["schema"])
            checkpoint = cls(path, int(content["step"]), content["val_loss"], dict(content["files"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: its {COMMIT} is missing or damaged ({error})") from error
        except OSError as error:
            raise UnreadableCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
        if schema != SCHEMA:
            raise UnreadableCheckpoint(f"{path}: is of version {schema}, this program reads {SCHEMA}: use its own")
        return checkpoint

    def damage(self) -> str | None:
        """What is wrong with its files, or None if every one has the size and hash of the COMMIT.

        Raises:
            UnreadableCheckpoint: the disk cannot be read.
        """
        try:
            return self._damage()
        except OSError as error:
            raise UnreadableCheckpoint(f"{self.path}: cannot be read ({error.strerror})") from error

    def _damage(self) -> str | None:
        for name, entry in self.files.items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["size"]:
                return f"{name} has {file.stat().st_size:,} bytes, not {entry['size']:,}"
            if _sha256(file) != entry["sha256"]:
                return f"{name} does not have the hash that was committed"
        return None


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Checkpoints of a run whose COMMIT can be read, oldest first; files are not verified."""
    found = []
    for path in directory.glob("step-*"):
        if _NAME.fullmatch(path.name):
            with contextlib.suppress(DataError):
                found.append(Checkpoint.read(path))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest_whole(directory: Path, before: int | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files are as committed, of a step below `before` if given; loud about others."""
    for checkpoint in reversed(list_checkpoints(directory)):
        if before is None or checkpoint.step < before:
            damage = checkpoint.damage()
            if damage is None:
                return checkpoint
            log.warning("%s: %s, so this checkpoint is passed over", checkpoint.path, damage)
    return None


def recover(directory: Path) -> Checkpoint | None:
    """Where a run goes on: its newest whole checkpoint, None if it has none yet.

    Newer ones that are not whole are renamed, loudly, and unfinished ones cleared.

    Raises:
        DataError: there were checkpoints and not one is whole. Training from step 0 would throw the run away.
        UnreadableCheckpoint: one is of another version, or the disk cannot be read; it keeps its name.
    """
    for path in directory.glob(f".step-*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)
    broken = []
    for path in sorted((path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True):
        try:
            checkpoint = Checkpoint.read(path)
            damage = checkpoint.damage()
        except UnreadableCheckpoint:
            raise
        except DataError as error:
            damage = str(error)
        if damage is None:
            return checkpoint
        log.warning("%s: %s, so this checkpoint is passed over", path, damage)
        aside = path.with_name(path.name + _DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        broken.append(aside.name)
    broken = broken or sorted(path.name for path in directory.glob(f"step-*{_DAMAGED}"))
    if broken:
        raise DataError(
            f"{directory}: none of the run's checkpoints is whole ({', '.join(broken)}): restore one of them, or start "
            "over in another run.dir"
        )
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
    """Write and commit `step-<step>` into `directory`, under another name until it is whole.

    Raises:
        DataError: the disk is full or cannot be written, or the weights are not finite. Earlier checkpoints stay as
            they are, and what was written of this one is removed.
    """
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise DataError(
            f"{directory}: at step {position.step:,} the weights are not finite, so they are not saved; the checkpoint "
            "before is whole: go on from it with a lower optim.lr in another run.dir"
        )
    path = directory / f"step-{position.step:08d}"
    partial = directory / f".{path.name}{_PARTIAL}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        with _single_process():
            save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=partial / "state", no_dist=True)
        position.save(partial / "position.json", config.run.seed, store_hash)
        (partial / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
        (partial / "identity.json").write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")
        (partial / "tokenizer").mkdir()
        tokenizer.save(partial / "tokenizer")
        _commit(partial, position.step, val_loss)
        partial.rename(path)
        flush(directory)
    except (OSError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        earlier = list_checkpoints(directory)
        kept = f"the newest one kept is {earlier[-1].path.name}" if earlier else "there is none before it"
        raise DataError(
            f"{path}: the checkpoint could not be written ({_cause(error)}); {kept}. Free disk space or mend the "
            "permissions, then start the same command again"
        ) from error
    return Checkpoint.read(path)


def _cause(error: OSError | CheckpointException) -> str:
    """What went wrong in a line; torch wraps the error of each rank."""
    inner: BaseException = error
    if isinstance(error, CheckpointException) and error.failures:
        inner = next(iter(error.failures.values()))[0]
    return (str(inner).strip() or type(inner).__name__).splitlines()[0]


def _commit(path: Path, step: int, val_loss: float | None) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = {str(file.relative_to(path)): {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files}
    for file in files:
        flush(file)
    for folder in {file.parent for file in files}:
        flush(folder)
    content = {"schema": SCHEMA, "step": step, "val_loss": val_loss, "files": listed}
    (path / COMMIT).write_text(json.dumps(content, indent=1) + "\n")
    flush(path / COMMIT)
    flush(path)


def load_training_state(checkpoint: Checkpoint, model: GeneMamba, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state in place."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    with _single_process():
        load(state, checkpoint_id=checkpoint.path / "state", no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def prune(directory: Path, keep_last: int, before: int | None) -> None:
    """Delete all checkpoints but the newest `keep_last`, the one of the best validation loss, and a way back.

    Args:
        directory: the run's checkpoints.
        keep_last: newest ones that stay.
        before: the newest checkpoint of a step below this stays, too: where a rollback would go.
    """
    checkpoints = list_checkpoints(directory)
    kept = {checkpoint.path for checkpoint in checkpoints[-keep_last:]}
    scored = [(c.val_loss, -c.step, c.path) for c in checkpoints if c.val_loss is not None]
    if scored:
        kept.add(min(scored)[2])
    if before is not None and (way_back := latest_whole(directory, before)):
        kept.add(way_back.path)
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            try:
                # Under a name that the next start clears: what is half deleted must not look whole.
                doomed = directory / f".{checkpoint.path.name}{_PARTIAL}"
                checkpoint.path.rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                log.warning("%s: an old checkpoint could not be deleted (%s)", checkpoint.path, error)


def open_checkpoint(path: Path) -> Checkpoint:
    """A verified checkpoint from its directory, or the newest whole one from a run's directory.

    Raises:
        DataError: there is none, or its files are not what was committed.
    """
    if (path / COMMIT).is_file():
        checkpoint = Checkpoint.read(path)
        if damage := checkpoint.damage():
            raise DataError(f"{path}: {damage}: this checkpoint is damaged, use another one of the run")
        return checkpoint
    newest = latest_whole(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if newest is None:
        raise DataError(f"{path}: neither a committed checkpoint nor a run directory that holds one")
    return newest


def load_model(checkpoint: Checkpoint) -> tuple[GeneMamba, Tokenizer, Config]:
    """The model of a checkpoint in evaluation mode, its tokenizer and its configuration."""
    config = config_from_file(checkpoint.path / "config.yaml")
    tokenizer = Tokenizer.load(checkpoint.path / "tokenizer")
    model = GeneMamba(config.model, tokenizer.vocabulary.size)
    state = {"model": model.state_dict()}
    with _single_process():
        load(state, checkpoint_id=checkpoint.path / "state", no_dist=True)
    model.load_state_dict(state["model"])
    return model.eval(), tokenizer, config

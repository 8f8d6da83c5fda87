"""Checkpoints that are whole or do not count.

A checkpoint is a directory. Its state is written under parameter names (`state.py`), so that it does not know the
number of ranks that wrote it, or by DeepSpeed as ZeRO's ranks hold it (`zero.py`); `COMMIT` comes last and lists every
file with its size and SHA-256. Whatever has no COMMIT is not a checkpoint; whatever does not match its COMMIT is passed
over, loudly.
"""

import contextlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.state import load_by_name, load_weights
from gm_train.config.load import config_from_file
from gm_train.config.schema import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.optim import build_optimizer

log = logging.getLogger(__name__)

COMMIT = "COMMIT"
SCHEMA = 2
_NAME = re.compile(r"step-(\d{8,})")
PARTIAL, REPLACED, _DAMAGED = ".partial", ".replaced", ".damaged"
#: The form of a state under parameter names; ZeRO's are `zero2` and `zero3`.
BY_NAME = "by name"


class UnreadableCheckpoint(DataError):
    """A checkpoint of another version, or one that the disk did not give: it may well be whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        path: its directory.
        step: the step that it was taken after.
        val_loss: the validation loss at that step, if it was validated.
        form: how the state is written, `by name`, `zero2` or `zero3`.
        n_ranks: number of ranks that wrote it; only ZeRO's forms depend on it.
        files: size in bytes and SHA-256 of every file, by name within the directory.
    """

    path: Path
    step: int
    val_loss: float | None
    form: str
    n_ranks: int
    files: dict[str, dict[str, Any]]

    @property
    def state(self) -> Path:
        """The folder of weights and optimizer state."""
        return self.path / "state"

    @property
    def n_bytes(self) -> int:
        return sum(int(entry["size"]) for entry in self.files.values())

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
            if schema != SCHEMA:
                raise UnreadableCheckpoint(f"{path}: is of version {schema}, this program reads {SCHEMA}: use its own")
            form, n_ranks = str(content["form"]), int(content["n_ranks"])
            checkpoint = cls(path, int(content["step"]), content["val_loss"], form, n_ranks, dict(content["files"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: its {COMMIT} is missing or damaged ({error})") from error
        except OSError as error:
            raise UnreadableCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
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
            if hash_path(file) != entry["sha256"]:
                return f"{name} does not have the hash that was committed"
        return None


def checkpoint_directories(directory: Path) -> list[Path]:
    """What has a checkpoint's name, by step."""
    return sorted(
        (path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Checkpoints of a run whose COMMIT can be read, oldest first; files are not verified."""
    found = []
    for path in checkpoint_directories(directory):
        with contextlib.suppress(DataError):
            found.append(Checkpoint.read(path))
    return found


def latest_whole(directory: Path, before: int | None = None) -> Checkpoint | None:
    """The newest checkpoint whose files are as committed, of a step below `before` if given; loud about others."""
    for checkpoint in reversed(list_checkpoints(directory)):
        if before is None or checkpoint.step < before:
            damage = checkpoint.damage()
            if damage is None:
                return checkpoint
            log.warning("%s: %s, so this checkpoint is passed over", checkpoint.path, damage)
    return None


def put_back(directory: Path) -> None:
    """Finish or undo the replacing of a checkpoint by a process that was killed in it."""
    for path in directory.glob(f".step-*{REPLACED}"):
        whole = path.with_name(path.name.removeprefix(".").removesuffix(REPLACED))
        if whole.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(whole)


def recover(directory: Path) -> Checkpoint | None:
    """Where a run goes on: its newest whole checkpoint, None if it has none yet.

    Newer ones that are not whole are renamed, loudly, and unfinished ones cleared.

    Raises:
        DataError: there were checkpoints and not one is whole. Training from step 0 would throw the run away.
        UnreadableCheckpoint: one is of another version, or the disk cannot be read; it keeps its name.
    """
    for path in (*directory.glob(f".step-*{PARTIAL}"), *directory.glob(".reshard-*")):
        shutil.rmtree(path, ignore_errors=True)
    put_back(directory)
    broken = []
    for path in reversed(checkpoint_directories(directory)):
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
                doomed = directory / f".{checkpoint.path.name}{PARTIAL}"
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


def refuse_other_form(checkpoint: Checkpoint, form: str, n_ranks: int) -> None:
    """Raise DataError if the state is cut up as other ranks of ZeRO held it.

    Args:
        checkpoint: to be read.
        form: what the reader writes itself; every reader reads what is by name.
        n_ranks: how many read it together.
    """
    if checkpoint.form != BY_NAME and (checkpoint.form, checkpoint.n_ranks) != (form, n_ranks):
        raise DataError(
            f"{checkpoint.path}: its state is cut up as {checkpoint.n_ranks} ranks of {checkpoint.form} held it: run "
            f"`gm-train ckpt reshard {checkpoint.path}` once, then this again"
        )


def load_whole(checkpoint: Checkpoint) -> tuple[GeneMamba, torch.optim.AdamW]:
    """The model of a checkpoint whose state is under parameter names, and its optimizer, whole and on the CPU."""
    config = config_from_file(checkpoint.path / "config.yaml")
    model = GeneMamba(config.model, Tokenizer.load(checkpoint.path / "tokenizer").vocabulary.size)
    optimizer = build_optimizer(model, config.optim)
    load_by_name(checkpoint.state, model, optimizer)
    return model, optimizer


def load_model(checkpoint: Checkpoint) -> tuple[GeneMamba, Tokenizer, Config]:
    """The model of a checkpoint in evaluation mode, its tokenizer and its configuration.

    Raises:
        DataError: its state is written as ZeRO's ranks held it.
    """
    refuse_other_form(checkpoint, BY_NAME, 1)
    config = config_from_file(checkpoint.path / "config.yaml")
    tokenizer = Tokenizer.load(checkpoint.path / "tokenizer")
    model = GeneMamba(config.model, tokenizer.vocabulary.size)
    load_weights(checkpoint.state, model)
    return model.eval(), tokenizer, config

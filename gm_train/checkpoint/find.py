"""Find and verify checkpoints. Only complete and undamaged ones are used.

A checkpoint is a directory. Its state is written under parameter names, independent of the number of ranks
(`state.py`), or by DeepSpeed as ZeRO's ranks hold it (`strategies/zero.py`). `COMMIT` is written last and lists every
file with its size and SHA-256. A directory without COMMIT is not a checkpoint. One that does not match its COMMIT is
skipped with a warning.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.files.kinds import CHECKPOINT, EXPORT, RUN, kind_of
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.state import load_by_name, load_weights
from gm_train.config.load import config_from_file
from gm_train.config.schema import Config
from gm_train.model.build_model import build_model
from gm_train.model.classes import Classes
from gm_train.model.genemamba import GeneMamba
from gm_train.optim import build_optimizer

log = logging.getLogger(__name__)

COMMIT = "COMMIT"
#: The file with the classes of a run that learns a label.
CLASSES = "classes.json"
SCHEMA = 2
_NAME = re.compile(r"step-(\d{8,})")
PARTIAL, REPLACED, _DAMAGED = ".partial", ".replaced", ".damaged"
#: The `form` of a state under parameter names; those of ZeRO are `zero2` and `zero3`.
BY_NAME = "by name"


class UnreadableCheckpoint(DataError):
    """A checkpoint that could not be checked: it is of another version, or the disk failed. It may be undamaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        path: its directory.
        step: the step after which it was written.
        val_loss: the validation loss at that step; None if there was no validation.
        form: how the state is written: `by name`, `zero2` or `zero3`.
        n_ranks: number of ranks that wrote it; it matters for ZeRO's forms only.
        files: size in bytes and SHA-256 of every file, by its path within the directory.
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
    def hash(self) -> str:
        """SHA-256 (hex) over the step and the hash of every file: the same for copies of the checkpoint."""
        content = {"step": self.step, "files": {name: entry["sha256"] for name, entry in self.files.items()}}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def classes(self) -> Classes | None:
        """What its run learns, calibrated if this checkpoint was; None unless the run learns a label."""
        if CLASSES not in self.files:
            return None
        return Classes.from_json(json.loads((self.path / CLASSES).read_text()))

    @property
    def n_bytes(self) -> int:
        """Total size of the files, in bytes."""
        return sum(int(entry["size"]) for entry in self.files.values())

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Read the COMMIT of a directory.

        Raises:
            DataError: COMMIT is missing or damaged.
            UnreadableCheckpoint: the checkpoint is of another version, or the disk cannot be read.
        """
        try:
            content = json.loads((path / COMMIT).read_text())
            schema = int(content["schema"])
            if schema != SCHEMA:
                raise UnreadableCheckpoint(
                    f"{path}: is of version {schema}, this program reads {SCHEMA}: use the gm-train that wrote it"
                )
            form, n_ranks = str(content["form"]), int(content["n_ranks"])
            checkpoint = cls(path, int(content["step"]), content["val_loss"], form, n_ranks, dict(content["files"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: its {COMMIT} is missing or damaged ({error})") from error
        except OSError as error:
            raise UnreadableCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
        return checkpoint

    def damage(self) -> str | None:
        """Return what is wrong with its files; None if all of them have the size and hash that COMMIT lists.

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
    """Return the directories that are named as a checkpoint, sorted by step."""
    return sorted(
        (path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Return a run's checkpoints whose COMMIT can be read, sorted by step. Their files are not verified."""
    checkpoints = []
    for path in checkpoint_directories(directory):
        with contextlib.suppress(DataError):
            checkpoints.append(Checkpoint.read(path))
    return checkpoints


def latest_whole(directory: Path, before: int | None = None) -> Checkpoint | None:
    """Return the newest undamaged checkpoint, of a step below `before` if given; warn about damaged ones."""
    for checkpoint in reversed(list_checkpoints(directory)):
        if before is None or checkpoint.step < before:
            damage = checkpoint.damage()
            if damage is None:
                return checkpoint
            log.warning("%s: %s, so this checkpoint is skipped", checkpoint.path, damage)
    return None


def put_back(directory: Path) -> None:
    """Finish or undo the replacement of a checkpoint, during which a process was killed."""
    for path in directory.glob(f".step-*{REPLACED}"):
        target = path.with_name(path.name.removeprefix(".").removesuffix(REPLACED))
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(target)


def recover(directory: Path) -> Checkpoint | None:
    """Return the checkpoint from which a run resumes: the newest undamaged one. None if the run has no checkpoint yet.

    Newer ones that are damaged are renamed with a warning; unfinished ones are deleted.

    Raises:
        DataError: there were checkpoints, but all are damaged. Training from step 0 would throw the run away.
        UnreadableCheckpoint: one is of another version, or the disk cannot be read. It keeps its name.
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
        log.warning("%s: %s, so this checkpoint is skipped", path, damage)
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


def prune(directory: Path, keep_last: int, before: int | None, scores: Mapping[int, float]) -> None:
    """Delete all checkpoints but the newest ones, those that are best by two scores, and the one for a rollback.

    One of the scores is the validation loss.

    Args:
        directory: the folder of the run's checkpoints.
        keep_last: number of newest checkpoints to keep.
        before: keep the newest undamaged checkpoint below this step as well, since a rollback would need it; None: no
            rollback is possible.
        scores: the other score, by step; smaller is better.
    """
    checkpoints = list_checkpoints(directory)
    kept = {checkpoint.path for checkpoint in checkpoints[-keep_last:]}
    if best := best_of(checkpoints, scores):
        kept.add(best.path)
    scored = [(c.val_loss, -c.step, c.path) for c in checkpoints if c.val_loss is not None]
    if scored:
        kept.add(min(scored)[2])
    if before is not None and (way_back := latest_whole(directory, before)):
        kept.add(way_back.path)
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            try:
                # Rename it first: if the deletion is interrupted, the rest must not look like a checkpoint. The next
                # start deletes what has this name.
                doomed = directory / f".{checkpoint.path.name}{PARTIAL}"
                checkpoint.path.rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                log.warning("%s: an old checkpoint could not be deleted (%s)", checkpoint.path, error)


def best_of(checkpoints: Sequence[Checkpoint], scores: Mapping[int, float]) -> Checkpoint | None:
    """The checkpoint with the smallest score, the earliest of equal ones; None if none has a score.

    Args:
        checkpoints: of a run.
        scores: step to score.
    """
    scored = [checkpoint for checkpoint in checkpoints if checkpoint.step in scores]
    return min(scored, key=lambda checkpoint: (scores[checkpoint.step], checkpoint.step), default=None)


def no_checkpoint(path: Path) -> DataError:
    """Return the error for a path where a checkpoint or a run was expected."""
    if not path.exists():
        return DataError(f"{path}: no such checkpoint or run directory")
    kind = kind_of(path)
    if kind in (None, RUN, CHECKPOINT):
        return DataError(f"{path}: has no committed checkpoint: train with `gm-train fit` first")
    way_out = "give the run.dir of a training"
    if kind == EXPORT:
        way_out = "make a checkpoint of it with `gm-train import`, and give that"
    return DataError(f"{path}: is {kind}, not a checkpoint or a run directory: {way_out}")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint directory, or the newest undamaged checkpoint of a run directory, and verify its files.

    Raises:
        DataError: there is no checkpoint, or it is damaged.
    """
    if (path / COMMIT).is_file():
        checkpoint = Checkpoint.read(path)
        if damage := checkpoint.damage():
            raise DataError(f"{path}: {damage}: this checkpoint is damaged, use another one of the run")
        return checkpoint
    newest = latest_whole(path / "checkpoints") if (path / "checkpoints").is_dir() else None
    if newest is None:
        raise no_checkpoint(path)
    return newest


def best_checkpoint(path: Path) -> Checkpoint:
    """As `open_checkpoint`, but of a run the undamaged checkpoint with the lowest validation loss, if it has one.

    Raises:
        DataError: there is no checkpoint, or it is damaged.
    """
    scored = [found for found in list_checkpoints(path / "checkpoints") if found.val_loss is not None]
    for checkpoint in sorted(scored, key=lambda found: (found.val_loss, -found.step)):
        damage = checkpoint.damage()
        if damage is None:
            return checkpoint
        log.warning("%s: %s, so this checkpoint is skipped", checkpoint.path, damage)
    return open_checkpoint(path)


def refuse_other_form(checkpoint: Checkpoint, form: str, n_ranks: int) -> None:
    """Raise DataError if ZeRO wrote the state for another strategy or number of ranks.

    Args:
        checkpoint: the checkpoint to read.
        form: the form that the reader itself writes. Every reader can read the form `by name`.
        n_ranks: number of ranks that read it together.
    """
    if checkpoint.form != BY_NAME and (checkpoint.form, checkpoint.n_ranks) != (form, n_ranks):
        raise DataError(
            f"{checkpoint.path}: its state is divided among {checkpoint.n_ranks} ranks of {checkpoint.form}: run "
            f"`gm-train ckpt reshard {checkpoint.path}` once, then this command again"
        )


def load_whole(checkpoint: Checkpoint) -> tuple[GeneMamba, torch.optim.AdamW]:
    """Load model and optimizer of a checkpoint of form `by name`, unsharded and on the CPU."""
    config = config_from_file(checkpoint.path / "config.yaml")
    vocabulary = Tokenizer.load(checkpoint.path / "tokenizer").vocabulary
    model = build_model(config, vocabulary.size, checkpoint.classes)
    optimizer = build_optimizer(model, config.optim, config.task.head_lr_factor)
    load_by_name(checkpoint.state, model, optimizer)
    return model, optimizer


def load_model(checkpoint: Checkpoint | Path | str) -> tuple[GeneMamba, Tokenizer, Config]:
    """Load a checkpoint's model in evaluation mode, its tokenizer and its configuration.

    The model of a run that learns a label has its classifier.

    Args:
        checkpoint: a checkpoint, or its directory, or a run directory for its newest checkpoint.

    Raises:
        DataError: there is no checkpoint, it is damaged, or its state has one of ZeRO's forms.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(Path(checkpoint))
    refuse_other_form(checkpoint, BY_NAME, 1)
    config = config_from_file(checkpoint.path / "config.yaml")
    tokenizer = Tokenizer.load(checkpoint.path / "tokenizer")
    model = build_model(config, tokenizer.vocabulary.size, checkpoint.classes)
    load_weights(checkpoint.state, model)
    return model.eval(), tokenizer, config

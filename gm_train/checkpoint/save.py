"""Write a checkpoint: all ranks together, completely or not at all."""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from torch.distributed.checkpoint.api import CheckpointException

from data_shards.errors import DataError
from data_shards.files.atomic import flush, hash_path, whole_directory
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import (
    BY_NAME,
    CLASSES,
    COMMIT,
    PARTIAL,
    REPLACED,
    SCHEMA,
    Checkpoint,
    list_checkpoints,
)
from gm_train.checkpoint.known_cells import STORE
from gm_train.checkpoint.state import save_weights
from gm_train.config.schema import Config
from gm_train.loading.position import Position
from gm_train.model.classes import Classes
from gm_train.ranks.ranks import Ranks, is_lost_connection
from gm_train.run.lock import RunLock

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What a checkpoint holds besides its state and position.

    Attributes:
        config: the run's resolved configuration, with absolute paths: a checkpoint is read from any folder.
        identity: settings and hashes that must be the same in a run that resumes it (`identity_of`).
        tokenizer: vocabulary and medians.
        store_hash: the hash of the store's manifest.
        manifest: the store's manifest; None for a checkpoint of an earlier version that is converted.
        classes: what a run with `task.name=classify` learns; None for other runs.
    """

    config: Config
    identity: dict[str, Any]
    tokenizer: Tokenizer
    store_hash: str
    manifest: Manifest | None = None
    classes: Classes | None = None

    def save(self, folder: Path, position: Position) -> None:
        """Write all of it, and the position, into a folder."""
        position.save(folder / "position.json", self.config.run.seed, self.store_hash)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(self.config)))
        (folder / "identity.json").write_text(json.dumps(self.identity, indent=1, sort_keys=True) + "\n")
        (folder / "tokenizer").mkdir()
        self.tokenizer.save(folder / "tokenizer")
        if self.manifest is not None:
            (folder / STORE).mkdir()
            self.manifest.save(folder / STORE)
        if self.classes is not None:
            (folder / CLASSES).write_text(json.dumps(self.classes.to_json(), indent=1) + "\n")


def save_checkpoint(
    directory: Path,
    write_state: Callable[[Path], None],
    form: str,
    position: Position,
    about: About,
    val_loss: float | None,
    ranks: Ranks,
    lock: RunLock | None,
    replace: bool = False,
) -> Checkpoint:
    """Write and commit the checkpoint `step-<step>`. All ranks call this. It has another name until it is complete.

    Args:
        directory: the folder of the run's checkpoints.
        write_state: writes this rank's part of the state into a folder.
        form: the form that `write_state` writes.
        position: the position of the whole run.
        about: what else the checkpoint holds.
        val_loss: the validation loss of these weights; None if there is none.
        ranks: this process among the others.
        lock: the lock of the run directory, on rank 0; None on the others.
        replace: whether it replaces a checkpoint of the same step.

    Raises:
        DataError: the disk is full or cannot be written, or another start has taken over. Earlier checkpoints stay
            unchanged, and what was written of this one is removed.
    """
    path = directory / f"step-{position.step:08d}"
    replaced = directory / f".{path.name}{REPLACED}"

    def begin() -> Path:
        # A unique name, because the old process of a start that was taken over may be writing the same step.
        partial = directory / f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        if lock is not None:
            lock.check()
        partial.mkdir(parents=True)
        try:
            about.save(partial, position)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            _refuse_taken_over(lock, error)
            raise
        return partial

    partial = ranks.from_first(lambda: _explain_failure(path, begin))

    def written() -> list[str]:
        return sorted(str(file.relative_to(partial)) for file in partial.rglob("*") if file.is_file())

    def hashed(names: list[str]) -> dict[str, dict[str, Any]]:
        for name in names:
            flush(partial / name)
        return {name: {"size": (partial / name).stat().st_size, "sha256": hash_path(partial / name)} for name in names}

    def commit(files: dict[str, dict[str, Any]]) -> Checkpoint:
        checkpoint = Checkpoint(path, position.step, val_loss, form, ranks.world_size, files)
        _commit(partial, checkpoint)
        if lock is not None:
            lock.check()
        if replace:
            path.rename(replaced)
        try:
            partial.rename(path)
        except OSError:
            if replace:
                replaced.rename(path)
            raise
        flush(directory)
        if replace:
            shutil.rmtree(replaced, ignore_errors=True)
        return checkpoint

    try:
        _write(path, lambda: write_state(partial / "state"), ranks)
        names = ranks.from_first(lambda: _explain_failure(path, written))
        # Each rank hashes its share of the files, no matter which rank wrote them.
        own = names[ranks.global_rank :: ranks.world_size]
        shares = ranks.gather(ranks.together(lambda: _explain_failure(path, lambda: hashed(own))))
        files = {name: entry for share in shares for name, entry in share.items()}
        return ranks.from_first(lambda: _explain_failure(path, lambda: commit(dict(sorted(files.items())))))
    except DataError as error:
        if ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            _refuse_taken_over(lock, error)
        raise


def save_weights_only(path: Path, weights: dict[str, torch.Tensor], position: Position, about: About) -> Checkpoint:
    """Write and commit a checkpoint of weights without optimizer state, outside of a run.

    Every reader of weights reads it. A run cannot resume from it.

    Args:
        path: the checkpoint; it must not exist.
        weights: tensors by the model's parameter names.
        position: what the weights were trained on; lanes are not needed.
        about: what else the checkpoint holds.

    Raises:
        DataError: `path` exists, or it cannot be written; nothing of it stays.
    """
    with whole_directory(path) as partial:
        about.save(partial, position)
        try:
            save_weights(partial / "state", weights)
        except (CheckpointException, RuntimeError) as error:
            # torch raises RuntimeError if the disk is full.
            raise DataError(f"{path}: cannot be written ({_cause(error)})") from error
        names = sorted(str(file.relative_to(partial)) for file in partial.rglob("*") if file.is_file())
        files = {name: {"size": (partial / name).stat().st_size, "sha256": hash_path(partial / name)} for name in names}
        _commit(partial, Checkpoint(path, position.step, None, BY_NAME, 1, files))
    return Checkpoint.read(path)


def _refuse_taken_over(lock: RunLock | None, error: DataError | OSError) -> None:
    """Raise DataError if another start has taken over.

    That start deletes unfinished checkpoints. So the write here failed with `error`, which looks like a disk error.
    """
    if lock is not None:
        try:
            lock.check()
        except DataError as taken_over:
            raise taken_over from error


def _write(path: Path, write_state: Callable[[], None], ranks: Ranks) -> None:
    """Write the state, all ranks together.

    Raises:
        DataError: the state could not be written. The other ranks may be waiting for this one inside `write_state`, so
            this process must end, which closes its connection to them.
    """
    try:
        write_state()
    except CheckpointException as error:
        # torch raises this on every rank.
        raise ranks.in_one_voice(_unwritten(path, error)) from error
    except OSError as error:
        raise _unwritten(path, error) from error
    except RuntimeError as error:
        # torch.save raises RuntimeError if the disk is full.
        if is_lost_connection(error):
            raise
        raise _unwritten(path, error) from error
    # Wait until all ranks have written, so that the files can be listed.
    ranks.gather(None)


def _explain_failure(path: Path, function: Callable[[], T]) -> T:
    """Return what `function` returns.

    Raises:
        DataError: `function` could not write. The message names the newest remaining checkpoint and what to do.
    """
    try:
        return function()
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError | RuntimeError | CheckpointException) -> DataError:
    earlier = list_checkpoints(path.parent)
    kept = f"the newest remaining one is {earlier[-1].path.name}" if earlier else "there is no earlier one"
    return DataError(
        f"{path}: the checkpoint could not be written ({_cause(error)}); {kept}. Free disk space or fix the "
        "permissions, then start the same command again"
    )


def _cause(error: OSError | RuntimeError | CheckpointException) -> str:
    """Say in one line what went wrong. torch wraps the errors of the ranks; this takes the first."""
    inner: BaseException = error
    if isinstance(error, CheckpointException) and error.failures:
        inner = next(iter(error.failures.values()))[0]
    return (str(inner).strip() or type(inner).__name__).splitlines()[0]


def _commit(folder: Path, checkpoint: Checkpoint) -> None:
    """Write COMMIT, after everything that it lists is on the disk."""
    for inner in {folder / name for name in checkpoint.files}:
        flush(inner.parent)
    content = {
        "schema": SCHEMA,
        "step": checkpoint.step,
        "val_loss": checkpoint.val_loss,
        "form": checkpoint.form,
        "n_ranks": checkpoint.n_ranks,
        "files": checkpoint.files,
    }
    (folder / COMMIT).write_text(json.dumps(content, indent=1) + "\n")
    flush(folder / COMMIT)
    flush(folder)

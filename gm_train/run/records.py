"""The run directory: its records, and the settings that identify a run."""

import contextlib
import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from data_shards.errors import DataError
from data_shards.files.atomic import flush, replace_file
from data_shards.workers.proc import processor_name
from gm_train.config.load import flat, with_absolute_paths
from gm_train.config.schema import Config
from gm_train.ranks.ranks import Ranks
from gm_train.run.provenance import git_revision, packages

log = logging.getLogger(__name__)

METRICS, SKIPPED, QUARANTINE = "metrics.jsonl", "skipped.jsonl", "quarantine.jsonl"

# Settings of the sections below that a resumed run may change: where it computes, how fast, and for how long.
_MAY_CHANGE = {
    "run.dir",
    "data.store",  # the store's hash is compared instead
    "data.workers",
    "data.cache_mb",
    "data.max_damaged_chunks",
    "data.micro_rows",
    "model.kernel",
    "model.init_from",  # the hash of the weights is compared instead
    "optim.fused",
    "objective.pathways",  # the file's hash is compared instead
    "optim.schedule_steps",  # compared separately: None means that of the run's first start
}

# Keys of an identity that hold the hash of what a setting names.
_HASHES = ("store", "vocabulary", "medians", "pathways", "classes")


def _identity_keys(config: Config) -> dict[str, Any]:
    """The settings that identify a run, by their full names."""
    sections = ("run", "data", "model", "objective", "task", "optim")
    keys = {
        key: value for key, value in flat(config).items() if key.split(".")[0] in sections and key not in _MAY_CHANGE
    }
    return keys | {"trainer.precision": config.trainer.precision}


def identity_of(config: Config, store_hash: str, vocabulary_hash: str, medians_hash: str) -> dict[str, Any]:
    """Return what identifies a run: settings by their full names, and hashes. Changing one makes it another run.

    Args:
        config: the run's configuration.
        store_hash: the hash of the store's manifest.
        vocabulary_hash: the hash of the vocabulary.
        medians_hash: the hash of the medians.

    Raises:
        DataError: the file of gene sets cannot be read.
    """
    identity: dict[str, Any] = {"store": store_hash, "vocabulary": vocabulary_hash, "medians": medians_hash}
    identity |= _identity_keys(config)
    identity["optim.schedule_steps"] = config.optim.schedule_steps
    pathways = config.objective.pathways
    try:
        identity["pathways"] = hashlib.sha256(Path(pathways).read_bytes()).hexdigest() if pathways else ""
    except OSError as error:
        raise DataError(f"objective.pathways={pathways}: cannot be read ({error.strerror})") from error
    return identity


def refuse_other_identity(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Compare a checkpoint's identity with the run's. A setting that is not in the checkpoint counts as its default.

    Args:
        path: the checkpoint, for the message.
        saved: the identity that the checkpoint holds.
        current: the identity of the run, as from `identity_of`.

    Raises:
        DataError: they differ; the message lists the differences.
    """
    saved = _identity_keys(Config()) | saved
    different = [key for key in sorted(saved | current) if saved.get(key) != current.get(key)]
    if not different:
        return
    lines = [f"  {key}: {_shown(key, saved)} in the checkpoint, {_shown(key, current)} now" for key in different]
    if "store" in different:
        lines.append("  the store is neither that of the run nor what `gm-train data shards --add` makes of it")
    way_out = "\nset these back to resume it, or train into another run.dir"
    if not any(key.startswith("model.") for key in different):
        way_out += f", from these weights if you like: model.init_from={path} run.dir=ANOTHER"
    raise DataError(f"{path}: belongs to another run than this configuration:\n" + "\n".join(lines) + way_out)


def _shown(key: str, identity: dict[str, Any]) -> str:
    """A value of an identity for a message; hashes are cut."""
    value = identity.get(key)
    return f"hash {value[:12]}…" if key in _HASHES and value else repr(value)


def write_config(directory: Path, config: Config) -> None:
    """Write the resolved configuration to `config.yaml`, with absolute paths."""
    config = with_absolute_paths(config)
    _replace(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))


def write_environment(directory: Path, start_step: int, ranks: Ranks, strategy: str, ended: float | None) -> None:
    """Append this start to `environment.json`: git revision, package versions, hardware, ranks and first step.

    Args:
        directory: the run directory.
        start_step: the step that this start continues from.
        ranks: this process among the others.
        strategy: the name of the strategy in use.
        ended: when the start before recorded its last row, in seconds since 1970; it is kept with that start, since
            rows of steps that are made again are dropped. None if it recorded none.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    path = directory / "environment.json"
    starts = []
    if path.is_file():
        try:
            starts = list(json.loads(path.read_text())["starts"])
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: is damaged (%s) and is replaced by a new one", path, error)
    if starts and ended is not None:
        starts[-1].setdefault("last_row", ended)
    starts.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": start_step,
            "git": git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": processor_name(),
            "cpus": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "ranks": ranks.world_size,
            "nodes": ranks.n_nodes,
            "strategy": strategy,
            "device": ranks.device().type,
            "job": os.environ.get("SLURM_JOB_ID"),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "packages": packages(),
        }
    )
    _replace(path, json.dumps({"starts": starts}, indent=1) + "\n")


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append a JSON line for each row; they are handed to the operating system before this returns.

    Raises:
        DataError: the disk is full or cannot be written. What was written in part is removed, if that can be done.
    """
    size = None
    try:
        size = path.stat().st_size if path.exists() else 0
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        if size is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, size)  # a line that is cut would damage the next one
        raise DataError(
            f"{path}: cannot be written ({error.strerror}): free disk space, then start the same command again"
        ) from error


def sync_rows(path: Path) -> None:
    """Flush the rows to the disk, so that no checkpoint survives a crash without the rows before it."""
    if path.is_file():
        flush(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file. An incomplete last line, which a killed process leaves, is ignored.

    Raises:
        DataError: a line other than the last is damaged.
    """
    return parse_rows(path.read_text(), path) if path.is_file() else []


def parse_rows(text: str, path: Path) -> list[dict[str, Any]]:
    """As `read_rows`, for text that was read from `path`."""
    lines = text.splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{path}: its line {number} is damaged: fix or delete that line") from error
    return rows


def last_time(path: Path) -> float | None:
    """When the last row was recorded, in seconds since 1970; None if no row says so."""
    return max((row["time"] for row in read_rows(path) if "time" in row), default=None)


def forget_after(path: Path, step: int) -> int:
    """Drop the rows after `step`, which belong to weights that were not saved. Returns the number of dropped rows."""
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= step]
    _write_rows(path, kept)
    return len(rows) - len(kept)


def repair_rows(path: Path) -> None:
    """Drop an incomplete last line, which a killed process leaves; otherwise the next row would be appended to it."""
    _write_rows(path, read_rows(path))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.is_file():
        _replace(path, "".join(json.dumps(row) + "\n" for row in rows))


def _replace(path: Path, text: str) -> None:
    """Replace a file, completely or not at all.

    Raises:
        DataError: the disk is full or cannot be written.
    """
    try:
        replace_file(path, text)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}): free disk space, then start the same command again"
        ) from error

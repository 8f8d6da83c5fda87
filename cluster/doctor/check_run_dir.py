"""Check what a run needs on disk and in memory: its directory, space for checkpoints, memory for its state."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.doctor.checkup import Answer, Checkup, Level, Problems, amount, differences, where
from data_shards.errors import DataError
from data_shards.store.manifest import Manifest
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.config.schema import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import choose, device_memory, strategy_class

_PUBLISHED_VOCABULARY = 25_426
# Bytes per parameter in a checkpoint: the weight and AdamW's two moments, in float32.
_SAVED = 12
# Seconds until a file that another node has written must be visible.
_VISIBLE_S = 5.0


def check_run_dir(checkup: Checkup, config: Config) -> None:
    """Check that all ranks can write into the run directory and see there what the others wrote."""
    path = Path(config.run.dir)
    views = checkup.ask("run dir", lambda: (secrets.token_hex(8), missing_folders(path), os.path.abspath(path)))
    if views is None:
        return
    token, missing = views[0].value[0], views[checkup.ranks.global_rank if checkup.connected else 0].value[1]
    try:
        if checkup.ask("run dir", lambda: _write(path, token, checkup.ranks.global_rank)) is None:
            return
        others = [one.rank for one in views]
        seen = checkup.ask("run dir", lambda: _seen(path, token, others if checkup.ranks.is_first else [0]))
        # From here on, all ranks have looked, and each may delete its file.
        if seen is None:
            return
        paths = [Answer(one.rank, one.node, one.value[2]) for one in views]
        problems = sharing_problems(config.run.dir, seen, paths)
        busy = checkup.ask("run dir", lambda: lock_problem(path) if checkup.ranks.is_first else None)
        if busy is not None and busy[0].value is not None:
            problems.append((Level.WARN, busy[0].value))
        by = f"written and read by {len(seen)} ranks" if len(seen) > 1 else "writable"
        checkup.conclude("run dir", f"{views[0].value[2]}: {by}", problems)
    finally:
        with contextlib.suppress(OSError):
            _file(path, token, checkup.ranks.global_rank).unlink()
        checkup.ask("run dir", lambda: None)
        for folder in missing:
            # Remove the folders that this check made, unless something else has been written into them.
            with contextlib.suppress(OSError):
                folder.rmdir()


def missing_folders(path: Path) -> list[Path]:
    """Return `path` and its parents as far as they do not exist, the deepest first."""
    # os.path.exists here and below: Path.exists raises if a folder on the way may not be entered.
    return [folder for folder in (path, *path.parents) if not os.path.exists(folder)]


def _file(path: Path, token: str, rank: int) -> Path:
    return path / f".doctor-{token}-{rank}"


def _write(path: Path, token: str, rank: int) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        _file(path, token, rank).write_text(token)
    except OSError as error:
        raise DataError(f"run.dir={path}: cannot be written ({error.strerror}): choose another run.dir") from error


def _seen(path: Path, token: str, ranks: Sequence[int]) -> list[int]:
    """Return the ranks whose files are visible. Look each up by name: on NFS, a listing may be out of date."""
    deadline = time.monotonic() + _VISIBLE_S
    while True:
        found = [rank for rank in ranks if os.path.exists(_file(path, token, rank))]
        if len(found) == len(ranks) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def sharing_problems(run_dir: str, seen: Sequence[Answer[list[int]]], paths: Sequence[Answer[str]]) -> Problems:
    """Report ranks whose run directory is not the folder of rank 0, although it has the same name.

    Args:
        run_dir: the run directory as configured.
        seen: from rank 0, the ranks whose files it saw; from each other rank, [0] if it saw rank 0's file, else [].
        paths: the absolute path of `run_dir` on each rank.
    """
    found = set(seen[0].value) if seen[0].rank == 0 else {one.rank for one in seen}
    separate = [one for one in seen if one.rank and (one.rank not in found or 0 not in one.value)]
    if not separate:
        return []
    if text := differences(paths):
        return [(Level.FAIL, f"run.dir={run_dir} is not the same folder everywhere: {text}: give an absolute path")]
    text = f"does not see what rank 0 on {seen[0].node} writes there, or the other way round: every node has its own"
    return [(Level.FAIL, f"{where(separate)}: {text}; choose a run.dir on a file system that all nodes share")]


def lock_problem(path: Path) -> str | None:
    """Say which other process holds the run directory, or None. Unlike `gm_train.run.lock.locked`, claim nothing."""
    try:
        with (path / ".lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(file.read())
                return f"another process is training into it ({holder}): wait for it, or choose another run.dir"
            except OSError as error:
                return f"its file system cannot lock ({error.strerror}): start no second run there"
    except FileNotFoundError:
        pass
    return None


def _holder(content: str) -> str:
    """Format what the process that holds a lock has written into its file."""
    try:
        return ", ".join(f"{key} {value}" for key, value in json.loads(content).items() if value is not None)
    except (ValueError, AttributeError):
        return "the lock file does not name it"


@dataclass(frozen=True)
class Size:
    """The size of the configured model.

    Attributes:
        n_parameters: number of parameters.
        assumed: the assumption behind this number, for the report; empty if there is none.
    """

    n_parameters: int
    assumed: str


def model_size(config: Config) -> Size:
    """Count the model's parameters, without building it. Without a store, assume the published vocabulary."""
    assumed = ""
    try:
        vocabulary = Manifest.load(config.data.store).n_genes + FIRST_GENE
    except DataError:
        vocabulary, assumed = _PUBLISHED_VOCABULARY, f" (over {_PUBLISHED_VOCABULARY:,} tokens, as published)"
    with torch.device("meta"):
        model = GeneMamba(config.model, vocabulary)
    return Size(sum(parameter.numel() for parameter in model.parameters()), assumed)


def check_space(checkup: Checkup, config: Config, size: Size) -> None:
    """Check that two checkpoints fit on the disk: an old one is deleted only after the new one is whole.

    Args:
        checkup: the checks of this rank.
        config: the configuration of the run.
        size: size of its model.
    """

    def free() -> int:
        path = Path(os.path.abspath(config.run.dir))
        existing = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
        return shutil.disk_usage(existing).free

    # Only rank 0 measures: `check_run_dir` checks that all ranks see the same file system.
    answers = checkup.ask("space", lambda: free() if checkup.ranks.is_first else 0)
    if answers is None:
        return
    need, left = 2 * _SAVED * size.n_parameters, answers[0].value
    measured = f"{amount(left)} free, two checkpoints take {amount(need)}{size.assumed}"
    short: Problems = [
        (Level.FAIL, f"too little at run.dir={config.run.dir}: free {amount(need - left)} there or choose another")
    ]
    checkup.conclude("space", measured, short if left < need else [])


def check_strategy(checkup: Checkup, config: Config, size: Size) -> None:
    """Check that the strategy is installed, and that the model's state fits the devices.

    Args:
        checkup: the checks of this rank.
        config: the configuration of the run.
        size: size of its model.
    """

    def look() -> tuple[str, str, int]:
        memory = device_memory(checkup.ranks)
        strategy, why = choose(config.trainer.strategy, size.n_parameters, checkup.ranks, memory)
        # Import the strategy: even if DeepSpeed is installed, its own requirements may be missing.
        strategy_class(strategy)
        return strategy, why, memory

    answers = checkup.ask("strategy", look)
    if answers is None:
        return
    measured, problems = judge_strategy(answers, size, checkup.ranks)
    checkup.conclude("strategy", measured, problems)


def judge_strategy(answers: Sequence[Answer[tuple[str, str, int]]], size: Size, ranks: Ranks) -> tuple[str, Problems]:
    """Judge whether a strategy fits the devices.

    Args:
        answers: from each rank, the strategy's name, the reason for it, and the device's memory in bytes.
        size: size of the model.
        ranks: the ranks that were started.

    Returns:
        A line for the report, and what speaks against a run.
    """
    strategy, why, _ = answers[0].value
    if text := differences(answers, lambda value: value[0]):
        text = f"trainer.strategy=auto chooses differently on devices of different memory: {text}: name one"
        return "", [(Level.FAIL, text)]
    need = strategy_class(strategy).state_bytes(size.n_parameters, ranks.world_size)
    measured = (
        f"{strategy} ({why}); {size.n_parameters:,} parameters{size.assumed}: {amount(need)} of weights, gradients and "
        f"moments on a rank with {amount(min(one.value[2] for one in answers))}, activations come on top"
    )
    small = [one for one in answers if one.value[2] < need]
    problems: Problems = []
    if small:
        fix = (
            "use more ranks"
            if strategy_class(strategy).shards_weights
            else "set trainer.strategy=fsdp2 and use more ranks"
        )
        problems.append((Level.FAIL, f"too much for {where(small)}: {fix}, or make the model smaller"))
    return measured, problems

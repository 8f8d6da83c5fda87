"""What a run needs of the file system and of memory: its directory, space for checkpoints, room for its state."""

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

from cluster.doctor.checkup import Checkup, Level, Problems, Said, amount, differences, where
from data_shards.errors import DataError
from data_shards.store.manifest import Manifest
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.config.schema import Config
from gm_train.model.genemamba import GeneMamba
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import choose, device_memory, strategy_class

_PUBLISHED_VOCABULARY = 25_426
# Bytes a parameter: of a checkpoint (weights and AdamW's two moments, float32), and the gradient besides.
_SAVED, _HELD = 12, 16
# How long a file that another node has written may take to be seen.
_VISIBLE_S = 5.0


def check_run_dir(checkup: Checkup, config: Config) -> None:
    """Whether all ranks can write into the run directory, and find there what the others wrote."""
    path = Path(config.run.dir)
    told = checkup.ask("run dir", lambda: (secrets.token_hex(8), missing_folders(path), os.path.abspath(path)))
    if told is None:
        return
    token, missing = told[0].value[0], told[checkup.ranks.global_rank if checkup.connected else 0].value[1]
    try:
        if checkup.ask("run dir", lambda: _write(path, token, checkup.ranks.global_rank)) is None:
            return
        others = [one.rank for one in told]
        seen = checkup.ask("run dir", lambda: _seen(path, token, others if checkup.ranks.is_first else [0]))
        # Before any rank takes its file away again, all have looked.
        if seen is None:
            return
        paths = [Said(one.rank, one.node, one.value[2]) for one in told]
        problems = sharing_problems(config.run.dir, seen, paths)
        busy = checkup.ask("run dir", lambda: lock_problem(path) if checkup.ranks.is_first else None)
        if busy is not None and busy[0].value is not None:
            problems.append((Level.WARN, busy[0].value))
        by = f"written and read by {len(seen)} ranks" if len(seen) > 1 else "writable"
        checkup.conclude("run dir", f"{told[0].value[2]}: {by}", problems)
    finally:
        with contextlib.suppress(OSError):
            _file(path, token, checkup.ranks.global_rank).unlink()
        checkup.ask("run dir", lambda: None)
        for folder in missing:
            # What held nothing before is left as it was; a folder that is not empty stays.
            with contextlib.suppress(OSError):
                folder.rmdir()


def missing_folders(path: Path) -> list[Path]:
    """The folders on the way to `path`, itself included, that are not there; the deepest first."""
    # os.path.exists, here and below: Path.exists raises where a folder on the way may not be entered.
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
    """Which of these ranks' files are there. Each is looked up by name: a listing may be an old one on NFS."""
    deadline = time.monotonic() + _VISIBLE_S
    while True:
        found = [rank for rank in ranks if os.path.exists(_file(path, token, rank))]
        if len(found) == len(ranks) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def sharing_problems(run_dir: str, seen: Sequence[Said[list[int]]], paths: Sequence[Said[str]]) -> Problems:
    """The ranks that write into another folder of the same name than rank 0.

    Args:
        run_dir: as configured.
        seen: by rank 0, whose files it found; by each other, whether that is [0].
        paths: what `run_dir` is on each rank, absolute.
    """
    found = set(seen[0].value) if seen[0].rank == 0 else {one.rank for one in seen}
    apart = [one for one in seen if one.rank and (one.rank not in found or 0 not in one.value)]
    if not apart:
        return []
    if text := differences(paths):
        return [(Level.FAIL, f"run.dir={run_dir} is not the same folder everywhere: {text}: give an absolute path")]
    text = f"does not see what rank 0 on {seen[0].node} writes there, or the other way round: every node has its own"
    return [(Level.FAIL, f"{where(apart)}: {text}; choose a run.dir on a file system that all nodes share")]


def lock_problem(path: Path) -> str | None:
    """Whether another process holds the run directory. This only looks; `gm_train.run.lock.claimed` may take over."""
    try:
        with (path / ".lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"another process is training into it ({_holder(file.read())}): wait for it, or choose another"
            except OSError as error:
                return f"its file system cannot lock ({error.strerror}): start no second run there"
    except FileNotFoundError:
        pass
    return None


def _holder(content: str) -> str:
    """What a process that holds a lock has written into it."""
    try:
        return ", ".join(f"{key} {value}" for key, value in json.loads(content).items() if value is not None)
    except (ValueError, AttributeError):
        return "it has not said which"


@dataclass(frozen=True)
class Size:
    """The configured model's size.

    Attributes:
        n_parameters: of the model, without building it.
        assumed: what had to be assumed for it, for a line; empty for nothing.
    """

    n_parameters: int
    assumed: str


def model_size(config: Config) -> Size:
    """Parameters of the configured model over the store's vocabulary, or over the published one."""
    assumed = ""
    try:
        vocabulary = Manifest.load(config.data.store).n_genes + FIRST_GENE
    except DataError:
        vocabulary, assumed = _PUBLISHED_VOCABULARY, f" (over {_PUBLISHED_VOCABULARY:,} tokens, as published)"
    with torch.device("meta"):
        model = GeneMamba(config.model, vocabulary)
    return Size(sum(parameter.numel() for parameter in model.parameters()), assumed)


def check_space(checkup: Checkup, config: Config, size: Size) -> None:
    """Whether two checkpoints fit beside each other, as an old one is deleted only after the new one is whole."""

    def free() -> int:
        path = Path(os.path.abspath(config.run.dir))
        there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
        return shutil.disk_usage(there).free

    # Rank 0's view: that all see the same file system is another check.
    said = checkup.ask("space", lambda: free() if checkup.ranks.is_first else 0)
    if said is None:
        return
    need, left = 2 * _SAVED * size.n_parameters, said[0].value
    measured = f"{amount(left)} free, two checkpoints take {amount(need)}{size.assumed}"
    short: Problems = [
        (Level.FAIL, f"too little at run.dir={config.run.dir}: free {amount(need - left)} there or choose another")
    ]
    checkup.conclude("space", measured, short if left < need else [])


def check_strategy(checkup: Checkup, config: Config, size: Size) -> None:
    """Whether the strategy is there, and the model fits the devices with it."""

    def look() -> tuple[str, str, int]:
        memory = device_memory(checkup.ranks)
        strategy, why = choose(config.trainer.strategy, size.n_parameters, checkup.ranks, memory)
        # Imports it: an installed DeepSpeed may still miss what it needs.
        strategy_class(strategy)
        return strategy, why, memory

    said = checkup.ask("strategy", look)
    if said is None:
        return
    measured, problems = judge_strategy(said, size, checkup.ranks)
    checkup.conclude("strategy", measured, problems)


def judge_strategy(said: Sequence[Said[tuple[str, str, int]]], size: Size, ranks: Ranks) -> tuple[str, Problems]:
    """Name, reason and memory that each rank found: a line for people, and what stands against a run."""
    strategy, why, _ = said[0].value
    if text := differences(said, lambda value: value[0]):
        text = f"trainer.strategy=auto chooses differently on devices of different memory: {text}: name one"
        return "", [(Level.FAIL, text)]
    need = strategy_class(strategy).state_bytes(size.n_parameters, ranks.world_size)
    measured = (
        f"{strategy} ({why}); {size.n_parameters:,} parameters{size.assumed}: {amount(need)} of weights, gradients and "
        f"moments on a rank with {amount(min(one.value[2] for one in said))}, activations come on top"
    )
    small = [one for one in said if one.value[2] < need]
    problems: Problems = []
    if small:
        mend = (
            "use more ranks"
            if strategy_class(strategy).shards_weights
            else "set trainer.strategy=fsdp2 and use more ranks"
        )
        problems.append((Level.FAIL, f"too much for {where(small)}: {mend}, or make the model smaller"))
    return measured, problems

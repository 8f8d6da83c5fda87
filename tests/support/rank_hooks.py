"""Faults that a test injects into a rank before it trains; module functions, so that another process can call them."""

import math
import os
from typing import Any

import torch


def _poison(values: dict[int, float]) -> None:
    """Change L_lang of some micro-batches (counted from 0, without validation), on rank 1 only."""
    if os.environ["RANK"] != "1":
        return
    import gm_train.train.step_module as module

    real, calls = module.loss_sums, -1

    def poisoned(model: Any, batch: Any, objective: Any) -> Any:
        nonlocal calls
        lang, pathway = real(model, batch, objective)
        if torch.is_grad_enabled():
            calls += 1
            if calls in values:
                # Adding infinity leaves the gradient finite; multiplying by NaN does not.
                lang = lang * values[calls] if math.isnan(values[calls]) else lang + values[calls]
        return lang, pathway

    module.loss_sums = poisoned


def poison_rank_1() -> None:
    """Poison the first micro-batch of step 4, the last one of step 7 and both of step 9; a step has two."""
    _poison({6: math.nan, 13: math.inf, 16: math.inf, 17: math.inf})


def poison_steps_6_to_8_of_rank_1() -> None:
    """Make the loss NaN in three consecutive steps."""
    _poison({10: math.nan, 12: math.nan, 14: math.nan})


def lose_the_store_on_rank_1() -> None:
    """Make the store missing on rank 1."""
    if os.environ["RANK"] == "1":
        import gm_train.loading.open_data as home

        real = home.StoreReader
        home.StoreReader = lambda path, *rest: real(f"{path}.not-here", *rest)  # type: ignore[misc,assignment]


def another_seed_on_rank_1() -> None:
    """Give rank 1 another setting than the other ranks."""
    if os.environ["RANK"] == "1":
        import gm_train.config.load as settings

        real = settings.load_config
        settings.load_config = lambda *words: real(*words, "run.seed=1")


def fill_the_disk_on_rank_1() -> None:
    """Make rank 1 fail to write its part of the second checkpoint, while the others write theirs."""
    if os.environ["RANK"] != "1":
        return
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    if "zero" not in os.environ["GM_TEST_STRATEGY"]:
        home, name, error = FileSystemWriter, "write_data", OSError(28, "No space left on device")
    else:
        # torch.save raises this on a full disk.
        from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

        home, name, error = TorchCheckpointEngine, "save", RuntimeError("[enforce fail] No space left on device")
    real, calls = getattr(home, name), 0

    def full(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        # Per save, DeepSpeed's rank 1 writes one file with ZeRO stage 2 and two with stage 3.
        if calls > (2 if os.environ["GM_TEST_STRATEGY"] == "zero3" else 1):
            raise error
        return real(*words, **more)

    setattr(home, name, full)


def damage_the_validation_of_rank_1() -> None:
    """Make rank 1, and only rank 1, find a damaged chunk among the held-out cells."""
    if os.environ["RANK"] != "1":
        return
    from data_shards.store.quarantine import DamagedChunk
    from gm_train.loading.rank_batches import RankBatches

    real = RankBatches.validation_batches

    def damaged(data: RankBatches) -> Any:
        batches = real(data)
        batches[0].info.damaged = (DamagedChunk("first", "c/0", 3, 192, 256),)
        return batches

    RankBatches.validation_batches = damaged  # type: ignore[method-assign]


def forget_deepspeed() -> None:
    """Make DeepSpeed seem not installed."""
    import importlib.util

    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "deepspeed" else real(name, *rest)

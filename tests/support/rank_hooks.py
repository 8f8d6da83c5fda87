"""What a test does to a rank before it trains; functions of a module, so that another process can call them."""

import math
import os
from typing import Any

import torch


def _poison(values: dict[int, float]) -> None:
    """Give the L_lang of some micro-batches (counted from 0, validation left out) other values, on rank 1 alone."""
    if os.environ["RANK"] != "1":
        return
    import gm_train.train.module as module

    real, calls = module.loss_sums, -1

    def poisoned(model: Any, batch: Any, temperature: float) -> Any:
        nonlocal calls
        lang, pathway = real(model, batch, temperature)
        if torch.is_grad_enabled():
            calls += 1
            if calls in values:
                # An infinity that is added leaves the gradient finite; NaN as a factor does not.
                lang = lang * values[calls] if math.isnan(values[calls]) else lang + values[calls]
        return lang, pathway

    module.loss_sums = poisoned


def poison_rank_1() -> None:
    """With two micro-batches a step: the first one of step 4, the last one of step 7, both of step 9."""
    _poison({6: math.nan, 13: math.inf, 16: math.inf, 17: math.inf})


def poison_steps_6_to_8_of_rank_1() -> None:
    """Three steps in a row lose their numbers."""
    _poison({10: math.nan, 12: math.nan, 14: math.nan})


def lose_the_store_on_rank_1() -> None:
    """Rank 1 does not see the store."""
    if os.environ["RANK"] == "1":
        import gm_train.train.fit as fit

        real = fit.StoreReader
        fit.StoreReader = lambda path, *rest: real(f"{path}.not-here", *rest)  # type: ignore[misc,assignment]


def another_seed_on_rank_1() -> None:
    """Rank 1 was given other words."""
    if os.environ["RANK"] == "1":
        import gm_train.config.load as settings

        real = settings.load_config
        settings.load_config = lambda words: real([*words, "run.seed=1"])


def fill_the_disk_on_rank_1() -> None:
    """Rank 1 cannot write its part of the second checkpoint, while the others write theirs."""
    if os.environ["RANK"] != "1":
        return
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    if "zero" not in os.environ["GM_TEST_STRATEGY"]:
        home, name, error = FileSystemWriter, "write_data", OSError(28, "No space left on device")
    else:
        # What torch.save raises of a full disk.
        from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

        home, name, error = TorchCheckpointEngine, "save", RuntimeError("[enforce fail] No space left on device")
    real, calls = getattr(home, name), 0

    def full(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        # DeepSpeed's rank 1 writes one file of stage 2 in a save, two of stage 3.
        if calls > (2 if os.environ["GM_TEST_STRATEGY"] == "zero3" else 1):
            raise error
        return real(*words, **more)

    setattr(home, name, full)


def damage_the_validation_of_rank_1() -> None:
    """Rank 1 alone finds a chunk damaged among the held-out cells."""
    if os.environ["RANK"] != "1":
        return
    from data_shards.store.quarantine import DamagedChunk
    from gm_train.loading.datamodule import CellDataModule

    real = CellDataModule.validation_batches

    def found(data: CellDataModule) -> Any:
        batches = real(data)
        batches[0].info.damaged = (DamagedChunk("first", "c/0", 3, 192, 256),)
        return batches

    CellDataModule.validation_batches = found  # type: ignore[method-assign]


def forget_deepspeed() -> None:
    """As if DeepSpeed were not installed."""
    import importlib.util

    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "deepspeed" else real(name, *rest)

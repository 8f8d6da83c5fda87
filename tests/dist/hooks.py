"""What a test does to a rank before it trains; functions of a module, so that another process can call them."""

import os
from typing import Any

import torch


def poison_rank_1() -> None:
    """Micro-batches of three steps of rank 1 alone lose their numbers; with an infinite loss and a finite gradient."""
    if os.environ["RANK"] != "1":
        return
    import gm_train.module as module

    real, calls = module.loss_sums, -1

    def poisoned(model: Any, batch: Any, temperature: float) -> Any:
        nonlocal calls
        lang, pathway = real(model, batch, temperature)
        if torch.is_grad_enabled():
            calls += 1
            # Two micro-batches a step: the first one of step 4, the last one of step 7, and both of step 9.
            if calls == 6:
                lang = lang * float("nan")
            elif calls in (13, 16, 17):
                lang = lang + float("inf")
        return lang, pathway

    module.loss_sums = poisoned


def lose_the_store_on_rank_1() -> None:
    """Rank 1 does not see the store."""
    if os.environ["RANK"] == "1":
        import gm_train.fit as fit

        real = fit.StoreReader
        fit.StoreReader = lambda path, *rest: real(f"{path}-elsewhere", *rest)  # type: ignore[misc,assignment]


def fill_the_disk_on_rank_1() -> None:
    """Rank 1 cannot write its part of the second checkpoint."""
    if os.environ["RANK"] == "1":
        import gm_train.strategies as strategies

        real, calls = strategies.save_by_name, 0

        def full(*words: Any) -> None:
            nonlocal calls
            calls += 1
            real(*words)
            if calls == 2:
                raise OSError(28, "No space left on device")

        strategies.save_by_name = full


def forget_deepspeed() -> None:
    """As if DeepSpeed were not installed."""
    import importlib.util

    real = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "deepspeed" else real(name, *rest)


def poison_steps_6_to_8_of_rank_1() -> None:
    """Three steps in a row lose their numbers on rank 1."""
    if os.environ["RANK"] == "1":
        import gm_train.module as module

        real, calls = module.loss_sums, -1

        def poisoned(model: Any, batch: Any, temperature: float) -> Any:
            nonlocal calls
            lang, pathway = real(model, batch, temperature)
            if torch.is_grad_enabled():
                calls += 1
                if calls // 2 in (5, 6, 7):
                    lang = lang * float("nan")
            return lang, pathway

        module.loss_sums = poisoned

"""List the exchanges between ranks, step by step; a module function, so that another process can call it."""

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist

NAMES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "broadcast_object_list",
    "barrier", "gather", "gather_object", "scatter", "reduce", "send", "recv", "all_to_all", "reduce_scatter_tensor",
)  # fmt: skip


def log_exchanges() -> None:
    """Append a line for each optimizer step to the file `GM_TEST_EXCHANGES` of rank 0: the exchanges since the last."""
    if os.environ["RANK"] != "0":
        return
    from gm_train.train.step_module import StepModule

    seen: list[str] = []

    def watched(name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            seen.append(name + ("" if named.get("async_op") else ", waited for"))
            return real(*arguments, **named)

        return call

    for name in NAMES:
        setattr(dist, name, watched(name, getattr(dist, name)))
    update = StepModule._update

    def logged(module: StepModule) -> None:
        update(module)
        with Path(os.environ["GM_TEST_EXCHANGES"]).open("a") as file:
            file.write(json.dumps(seen) + "\n")
        seen.clear()

    StepModule._update = logged  # type: ignore[method-assign]

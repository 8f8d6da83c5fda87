"""Nothing in a training step waits for the device.

PyTorch's device `meta` stands for a GPU: its tensors have no numbers, so whatever asks for one fails.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gm_train.train.step_module as home
from gm_train.config.load import load_config
from gm_train.model.classes import Classes
from gm_train.objective.batches import MicroBatch, StepInfo
from gm_train.ranks.ranks import Ranks
from gm_train.ranks.signals import Leaving
from gm_train.strategies.single import SingleProcess
from gm_train.train.step_module import StepModule

GPU = torch.device("meta")
ROWS, LENGTH, CELLS, DRAWN = 2, 96, 4, 3
VOCABULARY = 40
WORDS = [
    "data.store=nowhere", "run.dir=nowhere", "data.row_length=96", "model.d_model=32", "model.n_layers=2",
    "model.d_state=8", "model.head_dim=16", "model.chunk=32", "optim.warmup_steps=1", "trainer.max_steps=9",
    "optim.schedule_steps=9", "data.lanes=2", "model.kernel=torch",
]  # fmt: skip

#: What a run may learn; each shares the micro-batches below.
LEARNED = {
    "masked genes": ["objective.language=masked"],
    "missing genes": ["objective.language=missing"],
    "a label": ["task.name=classify", "task.label=type"],
}

aten = torch.ops.aten
#: Operations whose result has a size that only the device knows.
SIZED_BY_DATA = {aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor}


class Waits(TorchDispatchMode):
    """Lists the operations after which a program waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in args if isinstance(x, Tensor)]
        by_mask = function is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if function is aten._local_scalar_dense.default or function in SIZED_BY_DATA or by_mask:
            self.found.append(str(function))
        result = function(*args, **kwargs)
        if function in (aten._to_copy.default, aten.copy_.default):
            # From ordinary memory, a copy to the device waits as well.
            between = {x.device.type for x in [*tensors, result]} == {"cpu", "meta"}
            if between and not kwargs.get("non_blocking", False):
                self.found.append(f"{function} between devices")
        return result


class Bare(StepModule):
    """Steps without a Trainer."""

    @property
    def steps(self) -> Any:
        return SingleProcess(Ranks(), 1.0)

    @property
    def optimizer(self) -> Any:
        return self.adamw

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()  # type: ignore[no-untyped-call]


class OnItsWay:
    """Stands for the copy that nobody waits for; it counts how often one begins."""

    begun = 0

    def __init__(self, values: Tensor) -> None:
        assert values.device == GPU
        type(self).begun += 1

    def get(self) -> list[float]:
        return [1.0, 0.5, 2.0]


def micro_batch(first: bool, last: bool) -> MicroBatch:
    info = StepInfo(10, 4, CELLS, ROWS * LENGTH, ROWS * LENGTH, 1, {0: (0, 1)})
    positions = torch.arange(10, device=GPU)
    return MicroBatch(
        torch.ones(ROWS, LENGTH, dtype=torch.int64, device=GPU),
        torch.ones(ROWS, LENGTH, dtype=torch.int64, device=GPU),
        positions,
        positions + 2,
        torch.zeros(CELLS, DRAWN, dtype=torch.int64, device=GPU),
        torch.ones(CELLS, DRAWN, DRAWN, dtype=torch.bool, device=GPU),
        1,
        info,
        first,
        last,
        info if last else None,
    )


@pytest.mark.parametrize("words", LEARNED.values(), ids=LEARNED)
def test_steps_do_not_wait_for_the_device(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of two micro-batches each, with both losses, or of a label."""
    monkeypatch.setattr(home, "LateNumbers", OnItsWay)
    monkeypatch.setattr(OnItsWay, "begun", 0)
    # AdamW's fused kernel has an implementation on this device, but a check that does not know it.
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda parameter: None)
    # Nor is there autocast on it.
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **named: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)
    classes = Classes("type", ("a", "b", "c"), (9, 9, 9)) if "task.name=classify" in words else None
    module = Bare(load_config(*WORDS, *words), VOCABULARY, Ranks(), Leaving(), classes=classes).to(GPU)
    module.adamw = module.configure_optimizers()
    batches = [micro_batch(number % 2 == 0, number % 2 == 1) for number in range(6)]
    with Waits() as waits:
        for number, batch in enumerate(batches):
            module.training_step(batch, number)
    assert waits.found == []
    assert OnItsWay.begun == 3
    assert module.step == 3
    assert module.finished is not None
    assert module.finished.grad_norm == 2.0


def wait_for_a_norm(x: Tensor) -> Any:
    return float(x.norm())


def choose_by_mask(x: Tensor) -> Any:
    return x[x > 0]


@pytest.mark.parametrize("way", [wait_for_a_norm, choose_by_mask, Tensor.cpu, Tensor.tolist])
def test_waiting_is_an_error(way: Callable[[Tensor], Any]) -> None:
    """The test above cannot pass if a step does one of these."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        way(torch.ones(3, device=GPU))


def test_copies_from_ordinary_memory_are_noticed() -> None:
    with Waits() as waits:
        torch.ones(3).to(GPU)
        torch.ones(3).to(GPU, non_blocking=True)
        torch.where(torch.ones(3, device=GPU) > 0, 1.0, 0.0)
    assert len(waits.found) >= 1

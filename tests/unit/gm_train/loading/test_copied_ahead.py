"""Batches on their way to a GPU, with stand-ins for its streams and copies: what happens in which order."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_train.loading.copied_ahead import copied_ahead
from gm_train.objective.batches import MicroBatch, StepInfo

GPU = torch.device("cuda", 0)


def batch(number: int) -> MicroBatch:
    tensor = torch.tensor([number])
    info = StepInfo(1, 0, 1, 1, 1, 0, {0: (number, 0)})
    return MicroBatch(tensor, tensor, tensor, tensor, tensor, tensor > 0, 1, info, True, True)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stand-in for a GPU was told, in order."""
    told: list[str] = []
    computing = SimpleNamespace(wait_event=lambda event: told.append(f"wait for {event}"))
    copies = iter(range(100))
    copying = SimpleNamespace(record_event=lambda: f"copy {next(copies)}")
    inside: list[bool] = []

    @contextlib.contextmanager
    def stream(of: Any) -> Iterator[None]:
        inside.append(True)
        yield
        inside.pop()

    def to(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert inside
        assert non_blocking
        assert tensor.pinned  # type: ignore[attr-defined]
        return tensor.clone()

    def pin(tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        pinned.pinned = True  # type: ignore[attr-defined]
        return pinned

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copying)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    return told


def made(n: int, told: list[str], fails: bool = False) -> Iterator[MicroBatch]:
    for i in range(n):
        told.append(f"make {i}")
        yield batch(i)
    if fails:
        raise ValueError("damaged")


def test_without_a_gpu_batches_are_the_same_objects() -> None:
    batches = [batch(i) for i in range(3)]
    assert all(a is b for a, b in zip(copied_ahead(batches, torch.device("cpu")), batches, strict=True))


def test_the_next_batch_is_on_its_way_and_each_is_waited_for(events: list[str]) -> None:
    seen = []
    for number, copied in enumerate(copied_ahead(made(3, events), GPU)):
        events.append(f"use {number}")
        seen.append(replace(copied, input_ids=copied.input_ids))
    assert events == [
        *("make 0", "make 1", "wait for copy 0", "use 0"),
        *("make 2", "wait for copy 1", "use 1"),
        *("wait for copy 2", "use 2"),
    ]
    assert [int(one.input_ids) for one in seen] == [0, 1, 2]
    assert [one.info.lanes[0][0] for one in seen] == [0, 1, 2]


@pytest.mark.parametrize("n", [0, 2])
def test_an_error_comes_after_the_batches_before_it(n: int, events: list[str]) -> None:
    batches, seen = copied_ahead(made(n, events, fails=True), GPU), []
    with pytest.raises(ValueError, match="damaged"):
        seen.extend(batches)
    assert len(seen) == n

"""A process for each contender: turns, errors, and processes that die."""

import os
import signal
from typing import Any

import pytest
import torch

from data_shards.errors import DataError
from gm_train.bench.measure.process import BenchProcess, OutOfMemory


class Held:
    """An object that lives in a worker process."""

    def threads(self) -> int:
        return torch.get_num_threads()

    def fail(self, kind: str) -> None:
        if kind == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"memory": torch.OutOfMemoryError, "data": DataError, "bug": KeyError}[kind](f"{kind} failed")


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("memory", OutOfMemory, "memory failed"),
        ("data", DataError, "one: data failed"),
        ("bug", DataError, "one: KeyError"),
        ("death", DataError, "one: its process was killed by SIGKILL"),
    ],
)
def test_errors_in_a_worker_are_raised_by_the_caller(kind: str, error: type[Exception], words: str) -> None:
    with BenchProcess("one", 1, Held) as worker:
        assert worker.call("threads") == 1
        with pytest.raises(error, match=words):
            worker.call("fail", kind)


def test_a_process_that_was_killed_while_idle_is_reported() -> None:
    with BenchProcess("one", 1, Held) as worker:
        assert worker.call("threads") == 1
        worker._process.kill()
        worker._process.join()
        with pytest.raises(DataError, match="one: its process was killed by SIGKILL: if memory ran out"):
            worker.call("threads")


def test_a_process_whose_parent_is_gone_ends_silently(capfd: pytest.CaptureFixture[str]) -> None:
    worker = BenchProcess("one", 1, Held)
    worker.wait_until_started()
    worker._connection.close()
    worker._process.join(30)
    assert worker._process.exitcode == 0
    assert capfd.readouterr().err == ""


class Recorder:
    """Stands in for a worker and records its turns."""

    def __init__(self, name: str, turns: list[tuple[str, int]], fails_at: int = 1000) -> None:
        self.name, self._turns, self._fails_at = name, turns, fails_at

    def call(self, method: str, n: int) -> list[float]:
        self._turns.append((self.name, n))
        if len(self._turns) >= self._fails_at:
            raise OutOfMemory("none left")
        return [0.5] * n


def test_contenders_take_turns() -> None:
    from gm_train.bench.measure.turns import alternate

    turns: list[tuple[str, int]] = []
    workers: Any = [Recorder("a", turns), Recorder("b", turns)]
    assert alternate(workers, 5, lambda line: None) == {"a": [0.5] * 5, "b": [0.5] * 5}
    assert turns == [("a", 2), ("b", 2), ("a", 2), ("b", 2), ("a", 1), ("b", 1)]


def test_only_the_contender_that_runs_out_of_memory_drops_out() -> None:
    from gm_train.bench.measure.turns import alternate

    turns: list[tuple[str, int]] = []
    workers: Any = [Recorder("a", turns), Recorder("b", turns, fails_at=4)]
    assert alternate(workers, 6, lambda line: None) == {"a": [0.5] * 6, "b": None}
    assert [name for name, _ in turns] == ["a", "b", "a", "b", "a"]

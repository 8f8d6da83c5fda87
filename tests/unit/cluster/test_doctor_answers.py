"""How `gm-train doctor` judges the answers of many ranks and of GPUs; both are simulated here."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.doctor import check_device
from cluster.doctor.check_data import StoreView, store_problems
from cluster.doctor.check_device import Device, describe, device_problems, look, use_problems
from cluster.doctor.check_job import judge_job
from cluster.doctor.check_kernel import kernel_problems
from cluster.doctor.check_machine import Cores, cores_of_each, version_problems
from cluster.doctor.check_network import Stuck, within
from cluster.doctor.check_run_dir import Size, judge_strategy, sharing_problems
from cluster.doctor.checkup import Answer, Checkup, Level, Problems, amount, differences, spans, where
from cluster.doctor.examine import count_problems, layout_problems
from gm_train.config.schema import Config
from gm_train.ranks.ranks import Ranks
from gm_train.strategies.choose import strategy_class
from tests.support.launch_cases import executable

GB = 10**9


def replies(*values: Any, nodes: str = "") -> list[Answer[Any]]:
    """Make the answers of ranks 0, 1, ...; `nodes` has one letter per rank, which names its node."""
    pairs = zip(values, nodes or "a" * len(values), strict=True)
    return [Answer(i, f"host-{node}", value) for i, (value, node) in enumerate(pairs)]


def text_of(problems: Problems, level: Level) -> str:
    assert {found for found, _ in problems} == {level}
    return "\n".join(text for _, text in problems)


def test_naming_ranks() -> None:
    assert spans([0, 1, 2, 5]) == "0-2, 5"
    assert where(replies(0, 0, 0, nodes="aab")) == "ranks 0-1 on host-a, rank 2 on host-b"
    assert where(replies(*range(6), nodes="abcdef")).endswith("rank 3 on host-d and 2 more nodes")
    assert differences(replies(1, 1)) == ""
    assert differences(replies(1, 2, 1, nodes="aab")) == "1 (rank 0 on host-a, rank 2 on host-b), 2 (rank 1 on host-a)"
    assert [amount(n) for n in (0, 999, 1000, 1_590_000_000, 999_600)] == ["0 B", "999 B", "1 kB", "1.59 GB", "1 MB"]


class OfThree(Checkup):
    """Rank 0 of three ranks; the other two answer with the given values."""

    def __init__(self, *others: Any) -> None:
        self.printed: list[str] = []
        super().__init__(Ranks(0, 3, 0, 3), out=self.printed.append)
        self.others = others

    def _gather(self, value: Any) -> list[Answer[Any]]:
        return [Answer(0, "host-a", value), Answer(1, "host-b", self.others[0]), Answer(2, "host-b", self.others[1])]


def test_one_rank_that_fails_is_named_and_all_know() -> None:
    checkup = OfThree((7, None), (None, "no store there"))
    assert checkup.ask("store", lambda: 7, hint=": share it") is None
    assert checkup.printed == ["FAIL  store        rank 2 on host-b: no store there: share it"]
    assert checkup.failed


def test_what_all_ranks_find_is_said_once() -> None:
    checkup = OfThree(*[(None, "unexpected StopIteration: no message")] * 2)
    assert checkup.ask("store", lambda: next(iter([])), hint=": share it") is None
    assert checkup.printed == ["FAIL  store        unexpected StopIteration: no message"]
    checkup = OfThree((7, None), (8, None))
    answers = checkup.ask("store", lambda: 6)
    assert answers is not None
    assert [one.value for one in answers] == [6, 7, 8]
    assert not checkup.failed


@pytest.mark.parametrize(
    ("words", "ranks", "in_job", "level", "fragment"),
    [
        ({}, Ranks(0, 4, 0, 2), False, None, ""),
        ({"devices": 4}, Ranks(0, 4, 0, 2), False, Level.FAIL, "2 on each of 2 nodes were started: set both"),
        ({"num_nodes": 1}, Ranks(0, 4, 0, 2), False, Level.FAIL, "trainer.num_nodes=1"),
        ({}, Ranks(0, 5, 0, 5), False, Level.FAIL, "5 ranks: do not divide data.lanes=192"),
        ({}, Ranks(0, 4, 0, 2), True, Level.WARN, "cluster.nodes=1 x cluster.gpus_per_node=8 = 8 ranks"),
        ({}, Ranks(0, 8, 0, 8), True, None, ""),
    ],
)
def test_number_of_ranks(words: dict[str, int], ranks: Ranks, in_job: bool, level: Level | None, fragment: str) -> None:
    config = Config()
    for key, value in words.items():
        setattr(config.trainer, key, value)
    problems = count_problems(config, ranks, in_job)
    assert [found for found, _ in problems] == ([] if level is None else [level])
    assert fragment in "".join(text for _, text in problems)


def test_where_the_ranks_are() -> None:
    assert layout_problems(replies(0, 1, 0, 1, nodes="aabb"), Ranks(0, 4, 0, 2)) == []
    text = text_of(layout_problems(replies(0, 1, 0, nodes="aab"), Ranks(0, 3, 0, 1)), Level.FAIL)
    assert "not 2 on host-a, 1 on host-b: use --ntasks-per-node" in text
    text = text_of(layout_problems(replies(0, 0, 1, 1, nodes="abab"), Ranks(0, 4, 0, 2)), Level.WARN)
    assert "--distribution=block" in text
    # Containers that have the same host name.
    assert layout_problems(replies(0, 0, 0, nodes="aab"), Ranks(0, 3, 0, 1)) == []


def test_versions() -> None:
    one, other = {"torch": "2.12", "gm-train": "a" * 40}, {"torch": "2.13", "gm-train": "a" * 40 + "+"}
    assert version_problems(replies(one, one)) == []
    text = text_of(version_problems(replies(one, other, nodes="ab")), Level.WARN)
    assert "torch differs: 2.12 (rank 0 on host-a), 2.13 (rank 1 on host-b)" in text
    assert "gm-train differs: aaaaaaaaaaaa (rank 0 on host-a), aaaaaaaaaaaa+ (rank 1 on host-b)" in text


def test_cores_are_shared_by_the_ranks_that_may_use_them() -> None:
    everyone = Cores(frozenset(range(8)), None)
    assert cores_of_each(replies(everyone, everyone, everyone, nodes="aab")) == [4, 4, 8]
    assert cores_of_each(replies(Cores(frozenset({0, 1}), 2), Cores(frozenset({2, 3}), 2))) == [2, 2]
    assert cores_of_each(replies(Cores(frozenset(range(8)), 3))) == [3]


def test_run_directories_that_are_not_shared() -> None:
    same, other = replies("/r", "/r", nodes="ab"), replies("/a/r", "/b/r", nodes="ab")
    assert sharing_problems("r", replies([0, 1], [0], nodes="ab"), same) == []
    for seen in ([[0], [0]], [[0, 1], []]):
        text = text_of(sharing_problems("/r", replies(*seen, nodes="ab"), same), Level.FAIL)
        assert "rank 1 on host-b: does not see what rank 0 on host-a writes" in text
        assert "file system that all nodes share" in text
    text = text_of(sharing_problems("r", replies([0], [], nodes="ab"), other), Level.FAIL)
    assert "/a/r (rank 0 on host-a), /b/r (rank 1 on host-b): give an absolute path" in text


def test_stores_that_differ() -> None:
    one = StoreView("a" * 64, {"first": "1" * 64, "second": "2" * 64}, 10, 0.1, 5, 4, 48)
    assert store_problems("s", replies(one, one), 48) == []
    damaged = StoreView("a" * 64, {"first": "1" * 64, "second": "3" * 64}, 10, 0.1, 5, 4, 48)
    text = text_of(store_problems("s", replies(one, damaged, nodes="ab"), 48), Level.FAIL)
    assert "s/second: the same block has different hashes: 222222222222 (rank 0 on host-a)" in text
    another = StoreView("b" * 64, {}, 10, 0.1, 5, 4, 48)
    assert "stores of different hashes" in text_of(store_problems("s", replies(one, another), 48), Level.FAIL)
    empty = StoreView("a" * 64, {}, 0, 0.1, 5, 0, 49)
    text = text_of(store_problems("s", replies(empty), 48), Level.FAIL)
    assert "no training cells" in text
    assert "up to 49 tokens" in text


def gpu(index: int, **more: Any) -> Device:
    values = {"uuid": f"GPU-{index}", "index": index, "visible": 2, "local_size": 2, "software": "driver 1"} | more
    return Device("H100", 80 * GB, **values)


def test_gpus() -> None:
    well = replies(gpu(0), gpu(1))
    assert device_problems(well) == []
    assert use_problems(well, 2) == []
    assert describe(well) == "2 x H100, 80 GB each; driver 1"
    text = text_of(device_problems(replies(gpu(0), gpu(0))), Level.FAIL)
    assert "ranks 0-1 on host-a share GPU 0 (2 visible for 2 ranks)" in text
    assert device_problems(replies(gpu(0), gpu(0, uuid="GPU-9"), nodes="ab")) == []
    # If each task sees only one GPU, that always has number 0.
    assert device_problems(replies(gpu(0, visible=1, uuid=""), gpu(0, visible=1, uuid=""))) == []
    assert device_problems(replies(gpu(0, visible=1), gpu(0, visible=1, uuid="GPU-9"))) == []
    text = text_of(device_problems(replies(gpu(0), gpu(1, taken=9 * GB))), Level.WARN)
    assert "rank 1 on host-a: up to 9 GB are taken already" in text
    text = text_of(device_problems(replies(gpu(0), gpu(1, software="driver 2"))), Level.WARN)
    assert "different versions: driver 1 (rank 0 on host-a), driver 2" in text
    mixed = replies(Device("A100", 40 * GB, uuid="GPU-7"), gpu(1), nodes="ab")
    assert "different GPUs" in device_problems(mixed)[0][1]
    idle = replies(gpu(0, visible=8), gpu(1, visible=8))
    assert "8 GPUs are visible, 2 used" in text_of(use_problems(idle, 0), Level.WARN)
    assert "(8 visible on a node)" in describe(idle)


def test_ranks_without_a_gpu() -> None:
    cpu = Device("CPU", 4 * GB)
    assert device_problems(replies(cpu, cpu)) == []
    assert use_problems(replies(cpu), 0) == []
    assert "cluster.gpus_per_node=8, but no rank sees a GPU" in text_of(use_problems(replies(cpu), 8), Level.WARN)
    text = text_of(device_problems(replies(gpu(0), cpu, nodes="ab")), Level.FAIL)
    assert "rank 1 on host-b: no GPU is visible, while other ranks have one" in text
    hidden = Device("CPU", 4 * GB, software="there is a GPU (driver 9), but")
    assert "there is a GPU" in text_of(device_problems(replies(hidden)), Level.WARN)


def test_looking_at_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable(tmp_path / "nvidia-smi", "#!/bin/sh\necho 570.1\necho 570.1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert "has no CUDA support" in look(Ranks()).software or torch.version.cuda
    properties = SimpleNamespace(name="H100", uuid="abc", total_memory=80 * GB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (79 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 3))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(check_device, "_three", lambda device: 3.0)
    software = "driver 570.1, CUDA 12.8, NCCL 2.27.3"
    assert look(Ranks(3, 4, 3, 4)) == Device("H100", 80 * GB, GB, "abc", 3, 4, 4, software)
    monkeypatch.setattr(check_device, "_three", lambda device: 2.0)
    checkup = Checkup(Ranks(), out=lambda line: None)
    assert checkup.ask("device", lambda: look(Ranks())) is None


def test_memory_of_the_state() -> None:
    assert [strategy_class(name).state_bytes(100, 3) for name in ("single", "ddp", "fsdp2", "zero3", "zero2")] == [
        1600, 1600, 534, 534, 800,
    ]  # fmt: skip
    size, ranks = Size(10**9, ""), Ranks(0, 2, 0, 2)
    _, problems = judge_strategy(replies(("ddp", "as configured", 80 * GB), ("ddp", "", 80 * GB)), size, ranks)
    assert problems == []
    _, problems = judge_strategy(replies(("ddp", "as configured", 80 * GB), ("ddp", "", 15 * GB)), size, ranks)
    assert "too much for rank 1 on host-a: set trainer.strategy=fsdp2" in text_of(problems, Level.FAIL)
    _, problems = judge_strategy(replies(("ddp", "", 80 * GB), ("fsdp2", "", 15 * GB)), size, ranks)
    assert "chooses differently" in text_of(problems, Level.FAIL)


def test_the_job() -> None:
    shown = "JobId=7 JobName=x Requeue={} RunTime=00:50:00 TimeLimit=01:00:00 TimeMin=N/A"
    measured, problems = judge_job("7", shown.format(1), Config())
    assert (measured, problems) == ("7: 600 s of 3600 s left, is put back into the queue after a preemption", [])
    assert "without --requeue" in text_of(judge_job("7", shown.format(0), Config())[1], Level.WARN)
    config = Config()
    config.cluster.signal_seconds = 900
    assert "cluster.signal_seconds=900" in text_of(judge_job("7", shown.format(1), config)[1], Level.WARN)
    assert judge_job("7", "RunTime=00:50:00 TimeLimit=UNLIMITED", None)[0].startswith("7: no time limit")


def test_what_takes_too_long_is_left_behind() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(Stuck, match="no result"):
        within(0.05, lambda: time.sleep(1))


def test_a_slow_kernel_on_a_gpu_is_a_warning_with_its_reason() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    good, bad = ("mamba_ssm", "auto: on a GPU"), ("torch", "auto: mamba_ssm cannot run here (no gcc)")
    assert kernel_problems(replies(good, good), gpu, "auto") == []
    assert kernel_problems(replies(("torch", "auto: mamba_ssm is for GPUs")), cpu, "auto") == []
    assert kernel_problems(replies(("torch", "model.kernel=torch")), gpu, "torch") == []
    text = text_of(kernel_problems(replies(good, bad, nodes="ab"), gpu, "auto"), Level.WARN)
    assert "rank 1 on host-b: auto: mamba_ssm cannot run here (no gcc)" in text
    assert "mamba_ssm (rank 0 on host-a), torch (rank 1 on host-b)" in text

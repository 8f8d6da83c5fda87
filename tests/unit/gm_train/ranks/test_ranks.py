"""The rank of a process, the numbers of ranks that fit a configuration, and the choice of the strategy."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from data_shards.errors import DataError
from gm_train.config.check import ConfigError, rank_problems
from gm_train.config.schema import Config, DataConfig, TrainerConfig
from gm_train.objective.batches import StepInfo
from gm_train.ranks.launch_local import is_first, is_launched
from gm_train.ranks.ranks import Ranks, find_ranks, joined, launched
from gm_train.strategies.choose import choose

TASK = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
}  # fmt: skip


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def setenv(env: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        env.setenv(name, value)


def test_a_task_of_srun_is_a_rank(env: pytest.MonkeyPatch) -> None:
    setenv(env, TASK)
    ranks = launched()
    assert ranks == Ranks(global_rank=5, world_size=8, local_rank=1, local_size=4)
    assert (ranks.node_rank, ranks.n_nodes, ranks.is_first, is_first()) == (1, 2, False, False)


def test_a_batch_script_and_a_shell_of_one_task_are_not_ranks(env: pytest.MonkeyPatch) -> None:
    """SLURM sets the variables of a task there as well, and the number of tasks of the allocation."""
    setenv(env, {name: value for name, value in TASK.items() if "STEP" not in name} | {"SLURM_NTASKS": "8"})
    assert (launched(), is_launched(), is_first()) == (None, False, True)
    env.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert launched() is None


def test_torchrun_goes_before_slurm(env: pytest.MonkeyPatch) -> None:
    setenv(env, TASK | {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"})
    assert launched() == Ranks(2, 4, 0, 2)


@pytest.mark.parametrize(
    ("devices", "nodes", "fits"),
    [(None, None, True), (4, 2, True), (4, None, True), (8, None, False), (4, 1, False), (None, 3, False)],
)
def test_the_launcher_and_the_configuration_must_agree(
    env: pytest.MonkeyPatch, devices: int | None, nodes: int | None, fits: bool
) -> None:
    setenv(env, TASK)
    config = TrainerConfig(devices=devices, num_nodes=nodes)
    if fits:
        assert find_ranks(config).world_size == 8
    else:
        with pytest.raises(ConfigError, match="the launcher started 8 ranks, 4 on each node"):
            find_ranks(config)


def test_without_a_rendezvous_the_rank_says_where_it_waited(env: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    setenv(env, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    ranks = Ranks(1, 2, 1, 2)
    message = r"rank 1 of 2 on \S+ found no rendezvous at MASTER_ADDR=127.0.0.1, MASTER_PORT=1"
    with pytest.raises(DataError, match=message), joined(ranks, alone=False, timeout=timedelta(seconds=1)):
        pass


@given(st.integers(1, 400), st.integers(1, 4), st.integers(1, 64), st.integers(1, 64))
def test_the_message_names_the_numbers_that_fit(
    lanes: int, rows_per_lane: int, micro_rows: int, world_size: int
) -> None:
    config = dataclasses.replace(
        Config(), data=DataConfig(lanes=lanes, rows_per_lane=rows_per_lane, micro_rows=micro_rows)
    )
    problems = rank_problems(config, world_size)
    whole = lanes % world_size == 0 and lanes // world_size * rows_per_lane % micro_rows == 0
    assert (not problems) == whole
    if problems:
        named = [int(number) for number in problems[0].rsplit(": ", 1)[1].split(", ")]
        for number in named:
            if lanes % world_size:
                assert not rank_problems(config, number) or "micro_rows" in rank_problems(config, number)[0]
            else:
                fixed = dataclasses.replace(config, data=dataclasses.replace(config.data, micro_rows=number))
                assert not rank_problems(fixed, world_size)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_sample_hashes_add_up_modulo_2_to_the_64(hashes: list[int]) -> None:
    """The ranks exchange them as signed numbers."""

    class Others(Ranks):
        def gather_numbers(self, numbers):  # type: ignore[no-untyped-def]
            others = [StepInfo(0, 0, 0, 0, 0, number, {}).numbers() for number in hashes[1:]]
            everyone = torch.tensor([numbers, *others]).tolist()  # as int64
            return lambda: everyone

    info = StepInfo(1, 2, 3, 4, 5, hashes[0], {0: (1, 2)}).over(Others())
    assert info == StepInfo(1, 2, 3, 4, 5, sum(hashes) % 2**64, {0: (1, 2)})


@pytest.mark.parametrize(
    ("strategy", "ranks", "parameters", "chosen"),
    [
        ("auto", Ranks(), 10**12, "single"),
        ("auto", Ranks(0, 8, 0, 8), 66_000_000, "ddp"),
        ("auto", Ranks(0, 8, 0, 8), 2_500_000_000, "fsdp2"),
        # 2.5 G parameters take 40 GB, half of 80 GB. On several nodes they would be gathered over the network.
        ("auto", Ranks(0, 16, 0, 8), 2_500_000_000, "ddp"),
        ("auto", Ranks(0, 16, 0, 8), 4_000_000_000, "fsdp2"),
        ("ddp", Ranks(), 1, "single"),
        ("fsdp2", Ranks(), 1, "fsdp2"),
        ("zero3", Ranks(0, 2, 0, 2), 1, "zero3"),
    ],
)
def test_auto_goes_by_size_memory_and_nodes(strategy: str, ranks: Ranks, parameters: int, chosen: str) -> None:
    name, why = choose(strategy, parameters, ranks, memory=80 * 10**9)
    assert name == chosen
    assert "\n" not in why
    if strategy == "auto" and ranks.world_size > 1:
        assert f"{16 * parameters / 1e9:.2f} GB" in why
        assert "80 GB" in why


def test_lightning_still_has_the_methods_that_fit_replaces() -> None:
    """Under other names they would run again, and make several ranks hang on SIGTERM."""
    assert callable(_SignalConnector.register_signal_handlers)
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


def test_a_process_group_of_one_rank_ends_with_its_block(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for _ in range(2):
        with joined(Ranks(), alone=True):
            assert torch.distributed.is_initialized()
        assert not torch.distributed.is_initialized()

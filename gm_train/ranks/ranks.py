"""The ranks of a run: the number of this process among them, and how they exchange values outside forward and backward.

One process trains on one device. Processes are started by `srun` (one task for each rank), by `torchrun`, or, for
several ranks on one machine, by `gm-train` itself. A rank reads its number from the environment that its launcher set.
Numbers and objects are exchanged over gloo, even where gradients use NCCL, so that they never wait for a GPU.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from data_shards.errors import DataError
from gm_train.config.check import ConfigError
from gm_train.config.schema import TrainerConfig
from gm_train.ranks.launch_local import OtherRankFailed, free_port, is_launched

T = TypeVar("T")
N = TypeVar("N", int, float)

#: Longer than the slowest work that one rank does while the others wait: checking the hashes of a large checkpoint.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run.

    Attributes:
        global_rank: 0 … world_size - 1.
        world_size: number of ranks.
        local_rank: 0 … local_size - 1, among the ranks of this node.
        local_size: ranks on each node.
    """

    global_rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run directory."""
        return self.global_rank == 0

    @property
    def node_rank(self) -> int:
        """Number of this node: 0 … n_nodes - 1."""
        return self.global_rank // self.local_size

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.local_size

    def device(self) -> torch.device:
        """Return the GPU of this rank, or the CPU if there is no GPU. A task that sees only one GPU uses that one."""
        n_gpus = torch.cuda.device_count()
        return torch.device("cuda", self.local_rank % n_gpus) if n_gpus else torch.device("cpu")

    def backend(self) -> str:
        """Return what sends the gradients: `nccl` between GPUs, `gloo` between CPUs."""
        return "nccl" if self.device().type == "cuda" else "gloo"

    def sums(self, values: Sequence[N]) -> list[N]:
        """Sum each value over the ranks: integers as int64, which wraps around; as float64 if any value is a float."""
        if self.world_size == 1:
            return list(values)
        whole = all(isinstance(value, int) for value in values)
        tensor = torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
        dist.all_reduce(tensor)
        return list(tensor.tolist())

    def gather_numbers(self, numbers: Sequence[int]) -> Callable[[], list[list[int]]]:
        """Send as many int64 numbers as the other ranks to all of them, in the background.

        Returns:
            A function that waits for the numbers of all ranks and returns them, by rank.
        """
        if self.world_size == 1:
            return lambda: [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.int64)
        everyone = [torch.empty_like(own) for _ in range(self.world_size)]
        work = dist.all_gather(everyone, own, async_op=True)

        def wait() -> list[list[int]]:
            work.wait()
            return [of_rank.tolist() for of_rank in everyone]

        return wait

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 only, and return its result on every rank.

        Raises:
            DataError: `function` raised it. Rank 0 raises that error; the others raise OtherRankFailed.
        """
        if self.world_size == 1:
            return function()
        result: list[T | None] = [None]
        error: DataError | None = None
        if self.is_first:
            try:
                result = [function()]
            except DataError as caught:
                error = caught
        sent = [result[0], error is not None]
        dist.broadcast_object_list(sent)
        if error is not None:
            raise error
        if sent[1]:
            raise OtherRankFailed("rank 0 failed")
        return sent[0]  # type: ignore[return-value]

    def on_first(self, function: Callable[[], T]) -> T | None:
        """As `from_first`, but only rank 0 gets the result of `function`; the others get None."""
        kept: list[T] = []
        self.from_first(lambda: kept.append(function()))
        return kept[0] if kept else None

    def in_one_voice(self, error: DataError) -> DataError:
        """Return what to raise for an error that every rank finds, so that it is reported once.

        On rank 0 that is the error itself; on the others OtherRankFailed.
        """
        return error if self.is_first else OtherRankFailed("rank 0 reports the error")

    def together(self, function: Callable[[], T]) -> T:
        """Call `function` on every rank, and return its result on this rank once all ranks have succeeded.

        Raises:
            DataError: `function` raised it on some rank. That rank raises it; the others raise OtherRankFailed.
        """
        error: DataError | None = None
        result: T | None = None
        try:
            result = function()
        except DataError as caught:
            error = caught
        failed = self.gather(error is not None)
        if error is not None:
            raise error
        if any(failed):
            raise OtherRankFailed(f"rank {failed.index(True)} failed")
        return result  # type: ignore[return-value]


def launched() -> Ranks | None:
    """Read this process's rank from the environment of srun or torchrun; None if it is not one of several ranks."""
    env = os.environ
    if not is_launched():
        return None
    if "RANK" in env:
        size = int(env["WORLD_SIZE"])
        return Ranks(int(env["RANK"]), size, int(env.get("LOCAL_RANK", 0)), int(env.get("LOCAL_WORLD_SIZE", size)))
    size = int(env["SLURM_STEP_NUM_TASKS"])
    n_nodes = int(env.get("SLURM_STEP_NUM_NODES", 1))
    return Ranks(int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), size // n_nodes)


def find_ranks(trainer: TrainerConfig) -> Ranks:
    """Return this process's rank, from its launcher, and check it against the configuration.

    Raises:
        ConfigError: the launcher and the configuration contradict each other.
    """
    ranks = launched() or Ranks()
    devices = ranks.local_size if trainer.devices is None else trainer.devices
    nodes = ranks.n_nodes if trainer.num_nodes is None else trainer.num_nodes
    if (devices, nodes) != (ranks.local_size, ranks.n_nodes) or ranks.world_size != ranks.local_size * ranks.n_nodes:
        raise ConfigError(
            [
                f"trainer.devices={devices}, trainer.num_nodes={nodes}: the launcher started {ranks.world_size} ranks, "
                f"{ranks.local_size} on each node: set both to what was started, or leave them out"
            ],
            everywhere=True,
        )
    return ranks


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error of torch means that another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextlib.contextmanager
def joined(ranks: Ranks, alone: bool, timeout: timedelta = _TIMEOUT) -> Iterator[None]:
    """Join the process group of all ranks, and leave it at the end of the block.

    Args:
        ranks: this process among the others.
        alone: whether to make a group even for a single rank, which sharded strategies need.
        timeout: how long a rank waits for the others, at the rendezvous and later.

    Raises:
        DataError: the ranks did not find each other, or the connection to one of them was lost.
    """
    if ranks.world_size == 1 and not alone:
        yield
        return
    device = ranks.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world_size == 1:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(free_port())
    where = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, MASTER_PORT={os.environ.get('MASTER_PORT')}"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=ranks.global_rank,
            world_size=ranks.world_size,
            timeout=timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"rank {ranks.global_rank} of {ranks.world_size} on {socket.gethostname()} found no rendezvous at {where} "
            f"({str(error).splitlines()[0]}): do all ranks run, and can every node reach that address? "
            "For details run `gm-train doctor` under the same launcher"
        ) from error
    ended = False
    try:
        yield
        ended = True
    except RuntimeError as error:
        if is_lost_connection(error):
            raise DataError(
                f"rank {ranks.global_rank} lost the connection to another rank; that rank's last message says why. "
                "Start the same command again to resume from the last checkpoint"
            ) from error
        raise
    finally:
        # Closing NCCL waits for the other ranks. After an error they may be gone, so the process then just ends.
        if ended or device.type == "cpu":
            dist.destroy_process_group()

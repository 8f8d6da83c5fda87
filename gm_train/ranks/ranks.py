"""The ranks of a run: who this process is among them, and what they tell each other outside forward and backward.

One process trains on one device. Processes are started by `srun` (one task for each rank), by `torchrun`, or, for
several ranks on one machine, by `gm-train` itself; a rank reads its number from what its launcher left in the
environment. Numbers and objects travel over gloo, also where the gradients travel over NCCL: they never wait for a GPU.
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

#: Longer than the slowest thing that one rank does while the others wait: checking a large checkpoint's hashes.
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
        return self.global_rank // self.local_size

    @property
    def n_nodes(self) -> int:
        return self.world_size // self.local_size

    def device(self) -> torch.device:
        """The GPU of this rank, or the CPU. Where a task sees one GPU alone, it is that one."""
        n_gpus = torch.cuda.device_count()
        return torch.device("cuda", self.local_rank % n_gpus) if n_gpus else torch.device("cpu")

    def backend(self) -> str:
        """What gradients travel over: `nccl` between GPUs, `gloo` between CPUs."""
        return "nccl" if self.device().type == "cuda" else "gloo"

    def sums(self, values: Sequence[N]) -> list[N]:
        """Sums over the ranks, one for each value: of integers as int64 that wrap around, of others as float64."""
        if self.world_size == 1:
            return list(values)
        whole = all(isinstance(value, int) for value in values)
        tensor = torch.tensor(values, dtype=torch.int64 if whole else torch.float64)
        dist.all_reduce(tensor)
        return list(tensor.tolist())

    def gather(self, value: T) -> list[T]:
        """The value of every rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, function: Callable[[], T]) -> T:
        """What `function` returns on rank 0, which alone calls it, on every rank.

        Raises:
            DataError: on rank 0, as `function` raised it; on the others OtherRankFailed.
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
        told = [result[0], error is not None]
        dist.broadcast_object_list(told)
        if error is not None:
            raise error
        if told[1]:
            raise OtherRankFailed("rank 0 failed")
        return told[0]  # type: ignore[return-value]

    def on_first(self, function: Callable[[], T]) -> T | None:
        """As `from_first`, but what `function` returns stays on rank 0; the others get None."""
        kept: list[T] = []
        self.from_first(lambda: kept.append(function()))
        return kept[0] if kept else None

    def in_one_voice(self, error: DataError) -> DataError:
        """What to raise of an error that every rank finds: rank 0 says it, the others that it was said."""
        return error if self.is_first else OtherRankFailed("rank 0 has told")

    def together(self, function: Callable[[], T]) -> T:
        """What `function` returns on this rank, once it has returned on every rank.

        Raises:
            DataError: where `function` raised it; on the other ranks OtherRankFailed.
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
    """What the launcher of this process says; None if nothing has launched it as one of several ranks."""
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
    """Who this process is, as the launcher says and the configuration expects.

    Raises:
        ConfigError: they contradict each other.
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
    """Whether an error of torch says that another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextlib.contextmanager
def joined(ranks: Ranks, alone: bool, timeout: timedelta = _TIMEOUT) -> Iterator[None]:
    """The process group, from its rendezvous to its end.

    Args:
        ranks: this process.
        alone: whether a group is made even for one rank, as sharded strategies need it.
        timeout: how long a rank waits for the others, at the rendezvous and later on.

    Raises:
        DataError: the ranks did not find each other, or one of them was lost.
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
            "`gm-train doctor` under the same launcher says more"
        ) from error
    ended = False
    try:
        yield
        ended = True
    except RuntimeError as error:
        if is_lost_connection(error):
            raise DataError(
                f"rank {ranks.global_rank} lost the connection to another rank, whose own last words say why; start "
                "the same command again to go on from the last checkpoint"
            ) from error
        raise
    finally:
        # NCCL's end waits for the other ranks, which may be gone: then this process just ends.
        if ended or device.type == "cpu":
            dist.destroy_process_group()

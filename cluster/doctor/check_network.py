"""Check an all-reduce like that of the gradients: whether its sums are right, and how fast it is.

A collective that some rank does not join never returns. So it runs in a thread, which is abandoned after a time limit
(`Stuck`). The report continues, but the process must then be ended without waiting for that thread.
"""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from cluster.doctor.checkup import Checkup, Level, amount, where
from data_shards.errors import DataError

T = TypeVar("T")

#: Largest size of the tensor in bytes, on GPUs and on CPU ranks.
MOST_ON_GPU, MOST_ON_CPU = 256 << 20, 32 << 20
_PATIENCE_S = 120.0
_LARGE_ROUNDS, _SMALL_ROUNDS = 5, 20


@dataclass(frozen=True)
class Timing:
    """The measurements of one rank.

    Attributes:
        seconds: median time of an all-reduce of the large tensor.
        latency: median time in seconds of an all-reduce of a single number.
        right: whether all sums were right.
    """

    seconds: float
    latency: float
    right: bool


class Stuck(DataError):
    """A thread is stuck in a collective: the process cannot exit normally."""


def within(seconds: float, function: Callable[[], T]) -> T:
    """Run `function` in a thread, and return its result or raise its error.

    Raises:
        Stuck: it did not return within `seconds`; the thread is abandoned.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise Stuck(f"no result in {seconds:.0f} s")
    return results[0]


def measure(device: torch.device, n_bytes: int, rank: int, world_size: int) -> Timing:
    """Measure all-reduces of a large tensor and of a single number, a few times each. Every rank must call this.

    Args:
        device: the device of this rank.
        n_bytes: size of the large tensor.
        rank: global rank.
        world_size: number of ranks.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the current device is a setting of each thread
    # A new group: if a rank fails here, the messages of the default group stay in step. Its timeout is longer than
    # ours, because NCCL ends the whole process at that timeout.
    group = dist.new_group(
        backend="nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=10 * _PATIENCE_S)
    )
    expected = world_size * (world_size + 1) / 2

    def rounds(n: int, size: int) -> tuple[float, bool]:
        tensor = torch.empty(size, device=device)
        seconds, right = [], True
        for _ in range(n + 1):
            tensor.fill_(rank + 1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            dist.all_reduce(tensor, group=group)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
            right = right and bool((tensor == expected).all())
        return statistics.median(seconds[1:]), right  # the first round also connects

    large, large_right = rounds(_LARGE_ROUNDS, max(1, n_bytes // 4))
    latency, small_right = rounds(_SMALL_ROUNDS, 1)
    return Timing(large, latency, large_right and small_right)


def check_all_reduce(checkup: Checkup, gradient_bytes: int) -> bool:
    """Check and time an all-reduce over all ranks.

    Args:
        checkup: the checks of this rank.
        gradient_bytes: size of the model's gradient; the tensor has this size, up to a limit.

    Returns:
        Whether this process may exit normally: no thread is stuck in a collective.
    """
    ranks = checkup.ranks
    device = ranks.device()
    on_gpu = device.type == "cuda"
    n_bytes = min(gradient_bytes, MOST_ON_GPU if on_gpu else MOST_ON_CPU)
    free = True

    def run() -> Timing:
        nonlocal free
        try:
            return within(_PATIENCE_S, lambda: measure(device, n_bytes, ranks.global_rank, ranks.world_size))
        except Exception as error:
            free = not isinstance(error, Stuck)
            raise DataError(f"{str(error).splitlines()[0]}{advice(on_gpu)}") from error

    answers = checkup.ask("all-reduce", run)
    if answers is None:
        return free
    wrong = [one for one in answers if not one.value.right]
    if wrong:
        nodes = "these nodes" if len(wrong) > 1 else "this node"
        text = f"{where(wrong)}: sums over all ranks are wrong: do not use {nodes} (cluster.exclude)"
        checkup.conclude("all-reduce", "", [(Level.FAIL, text)])
        return free
    slowest = max(one.value.seconds for one in answers)
    bandwidth = n_bytes / slowest
    bus = bandwidth * 2 * (ranks.world_size - 1) / ranks.world_size
    latency = max(one.value.latency for one in answers)
    checkup.conclude(
        "all-reduce",
        f"{'nccl' if on_gpu else 'gloo'}, {amount(n_bytes)} in {slowest * 1e3:.3g} ms: {amount(bandwidth)}/s algorithm "
        f"bandwidth, {amount(bus)}/s bus bandwidth; latency {latency * 1e6:.0f} us",
        [],
    )
    return free


def advice(on_gpu: bool) -> str:
    """Return what to try if ranks that have met cannot do an all-reduce."""
    if on_gpu:
        return (
            ": NCCL_DEBUG=INFO in the environment shows why; NCCL_SOCKET_IFNAME names the network interface to use "
            "(`ip -brief address` lists them), NCCL_IB_DISABLE=1 switches InfiniBand off"
        )
    return ": GLOO_SOCKET_IFNAME names the network interface to use (`ip -brief address` lists them)"

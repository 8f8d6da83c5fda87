"""An all-reduce as gradients need it: whether its sums are right, and how fast it is.

A collective that some rank does not join never returns. It runs in a thread of its own, which is left behind when it
has taken too long; the report goes on, and the process has to be ended without waiting for it (`Stuck`).
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

#: Bytes of the tensor, at most: on GPUs, and on CPU ranks.
MOST_ON_GPU, MOST_ON_CPU = 256 << 20, 32 << 20
_PATIENCE_S = 120.0
_LARGE_ROUNDS, _SMALL_ROUNDS = 5, 20


@dataclass(frozen=True)
class Timing:
    """What one rank measured.

    Attributes:
        seconds: of an all-reduce of the large tensor, median.
        latency: of one of a single number, median, in seconds.
        right: whether all sums were right.
    """

    seconds: float
    latency: float
    right: bool


class Stuck(DataError):
    """A thread is still within a collective: the process cannot be ended in the usual way."""


def within(seconds: float, function: Callable[[], T]) -> T:
    """What `function` returns, from a thread; an error of its own is raised here.

    Raises:
        Stuck: it did not return in time; the thread is left behind.
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
    """All-reduce a tensor of `n_bytes` and a single number, a few times each; every rank calls this."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # which is a thread's own
    # A group of its own: where some rank fails, the messages of the others' group stay in step. Its limit is beyond
    # ours, since NCCL ends the whole process at it.
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
        return statistics.median(seconds[1:]), right  # the first one also connects

    large, large_right = rounds(_LARGE_ROUNDS, max(1, n_bytes // 4))
    latency, small_right = rounds(_SMALL_ROUNDS, 1)
    return Timing(large, latency, large_right and small_right)


def check_all_reduce(checkup: Checkup, gradient_bytes: int) -> bool:
    """Measure an all-reduce over all ranks.

    Returns:
        Whether this process may be ended as usual: no thread is left within a collective.
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

    said = checkup.ask("all-reduce", run)
    if said is None:
        return free
    wrong = [one for one in said if not one.value.right]
    if wrong:
        text = f"{where(wrong)}: sums over all ranks are wrong: leave {'these nodes' if len(wrong) > 1 else 'it'} out"
        checkup.conclude("all-reduce", "", [(Level.FAIL, text)])
        return free
    slowest = max(one.value.seconds for one in said)
    bandwidth = n_bytes / slowest
    bus = bandwidth * 2 * (ranks.world_size - 1) / ranks.world_size
    latency = max(one.value.latency for one in said)
    checkup.conclude(
        "all-reduce",
        f"{'nccl' if on_gpu else 'gloo'}, {amount(n_bytes)} in {slowest * 1e3:.3g} ms: {amount(bandwidth)}/s algorithm "
        f"bandwidth, {amount(bus)}/s bus bandwidth; latency {latency * 1e6:.0f} us",
        [],
    )
    return free


def advice(on_gpu: bool) -> str:
    """What to try when ranks that have met do not sum up."""
    if on_gpu:
        return (
            ": see why with NCCL_DEBUG=INFO in the environment; NCCL_SOCKET_IFNAME names the network interface to use "
            "(`ip -brief address` lists them), NCCL_IB_DISABLE=1 goes without InfiniBand"
        )
    return ": GLOO_SOCKET_IFNAME names the network interface to use (`ip -brief address` lists them)"

"""Run a compiled loop on as many threads as PyTorch uses."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def in_threads(work: Callable[[int, int], None], n: int) -> None:
    """Call `work(first, last)` for ranges that together are 0 … n - 1; the calling thread does its share.

    Args:
        work: releases Python's lock; its result must not depend on how the ranges are cut.
        n: number of units of work.
    """
    threads = max(1, min(torch.get_num_threads(), n))
    cuts = [n * i // threads for i in range(threads + 1)]
    pool = _pool(os.getpid(), torch.get_num_threads())
    others = [pool.submit(work, *cuts[i : i + 2]) for i in range(1, threads)]
    work(0, cuts[1])
    for other in others:
        other.result()


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of a process: after a fork, those of its parent do not exist."""
    return ThreadPoolExecutor(threads, thread_name_prefix="gm-train-loops")

"""Keep PyTorch's number of threads where other packages change it."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Restore PyTorch's number of threads after the block, or after a function that this decorates.

    The first parallel loop that numba runs (umap-learn, scib-metrics and scanpy have some) sets OpenMP's number of
    threads to that of all cores, for PyTorch too. What is computed afterwards would be rounded in another way, and
    `OMP_NUM_THREADS` would no longer hold.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)

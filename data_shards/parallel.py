"""Local worker processes whose results do not depend on how many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from data_shards.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers:
    """A pool of processes; one worker is this process itself."""

    def __init__(self, count: int) -> None:
        self._count = count
        # Fresh processes: a fork of one that has threads (HDF5, compiled kernels) can hang.
        self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn")) if count > 1 else None

    def map_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """`function` of each task, in the order of the tasks, with at most two tasks a worker in flight."""
        if self._pool is None:
            yield from map(function, tasks)
            return
        pending: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                pending.append(self._pool.submit(function, task))
                if len(pending) >= 2 * self._count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, most likely for want of memory: use fewer --workers"
            ) from error
        finally:
            for future in pending:
                future.cancel()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

"""Running tasks on this machine's processes or on a Dask cluster; results do not depend on which, or on how many."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from data_shards.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
_ANSWER_S = 30


class Workers:
    """What runs tasks: this process (one worker), a pool of processes, or the workers of a Dask scheduler.

    Args:
        count: processes of this machine, if there is no scheduler.
        dask: address of a scheduler, such as tcp://head:8786. Its workers need this package and the same file system.

    Raises:
        DataError: Dask is not installed, or no scheduler answers.
    """

    def __init__(self, count: int = 1, dask: str | None = None) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._client: Any = None
        if dask is not None:
            self._client = _connect(dask)
        elif count > 1:
            # Fresh processes: a fork of one that has threads (HDF5, compiled kernels) can hang.
            self._pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))

    @property
    def at_once(self) -> int:
        """Tasks that run at the same time; of a Dask cluster, now: workers may join and leave."""
        return self._count if self._client is None else max(1, sum(self._client.nthreads().values()))

    def map_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """`function` of each task, in the order of the tasks, with at most two tasks a worker in flight.

        Raises:
            DataError: a worker was killed, the scheduler is gone, or a task raised it.
        """
        if self._pool is None and self._client is None:
            yield from map(function, tasks)
            return
        pending: deque[Any] = deque()
        try:
            for task in tasks:
                pending.append(self._submit(function, task))
                while len(pending) >= 2 * self.at_once:
                    yield self._result(pending.popleft())
            while pending:
                yield self._result(pending.popleft())
        finally:
            for future in pending:
                future.cancel()

    def _submit(self, function: Callable[[Task], Result], task: Task) -> Any:
        if self._client is not None:
            return self._client.submit(function, task, pure=False)
        assert self._pool is not None
        try:
            return self._pool.submit(function, task)
        except BrokenProcessPool as error:
            raise _killed() from error

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise _killed() from error
        except CancelledError as error:
            raise DataError("the Dask scheduler is gone: start it again, and the same command") from error
        except Exception as error:
            if type(error).__name__ == "KilledWorker":  # Dask's own, which is not there without Dask
                raise DataError(
                    f"Dask workers died over the same task again and again, most likely for want of memory ({error}): "
                    "give each of them more"
                ) from error
            raise

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._client is not None:
            self._client.close()


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError("--dask needs Dask: pip install 'gm-train[dask]'") from error
    try:
        return Client(address, timeout=_ANSWER_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise DataError(
            f"--dask {address}: no scheduler answers ({error}): start one with `dask scheduler`, and give the address "
            "that it prints"
        ) from error


def _killed() -> DataError:
    return DataError("a worker process was killed, most likely for want of memory: use fewer --workers")

"""Running tasks on this machine's processes or on a Dask cluster; results do not depend on which, or on how many."""

import asyncio
import ctypes
import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import forkserver, get_context, parent_process
from typing import Any, TypeVar

from data_shards.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
_ANSWER_S = 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: What tasks need, and what they need imports.
_TASKS = ["data_shards.medians", "data_shards.parts"]
#: Bytes of a folder for temporary files in which the fork server's socket still has a name.
_LONGEST = 64


class Workers:
    """What runs tasks: this process (one worker), a pool of processes, or the workers of a Dask scheduler.

    Args:
        count: processes of this machine, if there is no scheduler.
        dask: address of a scheduler, such as tcp://head:8786. Its workers need this package and the same file system.
        say: takes lines of the report.

    Raises:
        DataError: Dask is not installed, or no scheduler answers.
    """

    def __init__(self, count: int = 1, dask: str | None = None, say: Callable[[str], None] = print) -> None:
        self._count = count
        self._say = say
        self._pool: ProcessPoolExecutor | None = None
        self._client: Any = None
        self._address = dask
        self._waits = False
        if dask is not None:
            self._client = _connect(dask)
        elif count > 1:
            self._pool = ProcessPoolExecutor(count, get_context(_start_method()), _begin_worker)

    @property
    def at_once(self) -> int:
        """Tasks that run at the same time; of a Dask cluster, now: workers may join and leave.

        Raises:
            DataError: the scheduler is gone.
        """
        if self._client is None:
            return self._count
        try:
            threads: int = sum(self._client.nthreads().values())
        except OSError as error:
            raise self._gone() from error
        if not threads and not self._waits:
            self._say(f"{self._address}: the scheduler has no workers: waiting for some to join")
        self._waits = not threads
        return max(1, threads)

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
            # What runs already cannot be stopped; of a Dask cluster it may be anywhere.
            wait([future for future in pending if isinstance(future, Future)])

    def _submit(self, function: Callable[[Task], Result], task: Task) -> Any:
        if self._client is not None:
            return self._client.submit(function, task, pure=False)
        assert self._pool is not None
        try:
            return self._pool.submit(function, task)
        except BrokenProcessPool as error:
            raise _killed() from error

    def _result(self, future: Any) -> Any:
        while True:
            try:
                return future.result(_ANSWER_S)
            except TimeoutError:
                if future.done():
                    raise
                _ = self.at_once  # says so where there is no worker left
            except BrokenProcessPool as error:
                raise _killed() from error
            except CancelledError as error:
                raise self._gone() from error
            except Exception as error:
                # Dask's own, which are not there without Dask.
                if type(error).__name__ == "CommClosedError":
                    raise self._gone() from error
                if type(error).__name__ == "KilledWorker":
                    raise DataError(
                        "Dask workers died over the same task again and again, most likely for want of memory "
                        f"({error}): give each of them more"
                    ) from error
                raise

    def _gone(self) -> DataError:
        return DataError(f"{self._address}: the Dask scheduler is gone: start it again, and then the same command")

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._client is not None:
            self._client.close()


def _connect(address: str) -> Any:
    try:
        # Untyped, as a whole.
        distributed: Any = import_module("distributed")
        comm: Any = import_module("distributed.comm")
    except ImportError as error:
        raise DataError("--dask needs Dask: pip install 'gm-train[dask]'") from error

    async def answer() -> None:
        security = distributed.Security().get_connection_args("client")
        found = await comm.connect(address, _ANSWER_S, **security)
        await found.close()

    # It prints the ways in which a connection was lost.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        # A client that finds no scheduler goes on looking for it long after it has raised.
        with ThreadPoolExecutor(1) as thread:  # a notebook has a loop in this one
            thread.submit(asyncio.run, answer()).result()
        return distributed.Client(address, timeout=_ANSWER_S, set_as_default=False)
    except TypeError as error:
        raise DataError(
            f"--dask {address}: the connection needs TLS keys ({error}): name them in Dask's settings, "
            "`distributed.comm.tls.ca-file`, `client.cert` and `client.key` there"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"--dask {address}: no scheduler answers ({error}): start one with `dask scheduler`, and give the address "
            "that it prints"
        ) from error


def _start_method() -> str:
    """Workers are forks of a server that imports for all: of this process, which has threads, they could hang."""
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST:
        return "spawn"
    forkserver.set_forkserver_preload(_TASKS)
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # or the server would import what lies in the current folder
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
    return "forkserver"


def _begin_worker() -> None:
    """In a worker process: keep what is freed, and end with the process that started it, even if that is killed."""
    # What glibc gives back is cleared by the system when it is asked for again: a tenth of the time of medians.
    set_malloc = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_malloc is not None and set_malloc(_M_MMAP_THRESHOLD, 32 << 20):
        set_malloc(_M_TRIM_THRESHOLD, 256 << 20)
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _killed() -> DataError:
    return DataError("a worker process was killed, most likely for want of memory: use fewer --workers")

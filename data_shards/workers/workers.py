"""Run tasks in processes of this machine or on a Dask cluster; the results are the same for any number of either."""

import asyncio
import ctypes
import logging
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from typing import Any, TypeVar

from data_shards.errors import DataError
from data_shards.workers import interrupts

Task = TypeVar("Task")
Result = TypeVar("Result")
#: A function and its argument.
Call = tuple[Callable[[Any], Any], Any]
#: The calls of each step; a step is taken once all calls of the step before are done.
Steps = Iterator[Sequence[Call]]
#: Seconds to wait for an answer of a scheduler or for a result, before checking again.
_ANSWER_S = 30
#: Seconds to wait silently for workers to finish.
_PATIENCE_S = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Modules that the fork server imports: with what they import, they cover what tasks need.
_TASKS = ["data_shards.medians.make_medians", "data_shards.prepare.rank_range"]
#: Longest path of TMPDIR, in bytes, for which the path of the fork server's socket is not too long.
_LONGEST = 64


class Workers:
    """Runs tasks in this process (one worker), in a pool of processes, or on the workers of a Dask scheduler.

    Args:
        count: number of processes on this machine, if no scheduler is given.
        dask: address of a scheduler, such as tcp://head:8786. Its workers need this package and the same file system.
        say: receives each line of the report.

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
        self._watch = ExitStack()
        if dask is not None:
            self._client = _connect(dask)
        elif count > 1:
            self._pool = ProcessPoolExecutor(count, get_context(start_server()), _begin_worker)

    @property
    def at_once(self) -> int:
        """Number of tasks that run at the same time; on a Dask cluster the current one: workers may join and leave.

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

    def map_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """Yield `function(task)` for each task, in the order of the tasks, with at most two tasks per worker in flight.

        Raises:
            DataError: a worker was killed, the scheduler is gone, or a task raised it.
        """
        calls = ((function, task) for task in tasks)
        yield from self._results(lambda: next(calls, None))

    def run(self, jobs: Iterable[Steps]) -> Iterator[Any]:
        """Run jobs side by side, as many as keep all workers busy; jobs that have begun go first.

        Yields:
            The argument of each call, once the call is done.

        Raises:
            DataError: as `map_in_order` does, or a job raised it.
        """
        remaining = iter(jobs)
        ready: deque[tuple[_Job, Call]] = deque()
        running: deque[tuple[_Job, Call]] = deque()

        def start_next_step(job: _Job) -> None:
            calls = next(filter(None, job.steps), ())
            job.unfinished = len(calls)
            ready.extendleft((job, call) for call in reversed(calls))

        def take() -> Call | None:
            while not ready:
                steps = next(remaining, None)
                if steps is None:
                    return None
                start_next_step(_Job(steps))
            running.append(ready.popleft())
            return running[-1][1]

        for _ in self._results(take):
            job, (_, task) = running.popleft()
            yield task
            job.unfinished -= 1
            if not job.unfinished:
                start_next_step(job)

    def _results(self, take: Callable[[], Call | None]) -> Generator[Any, None, None]:
        """Yield the results of the calls that `take` returns, in their order.

        `take` returns None when no call is ready; iteration ends once nothing runs.
        """
        if self._pool is None and self._client is None:
            while (call := take()) is not None:
                function, task = call
                result = function(task)
                interrupts.check()
                yield result
            return
        pending: deque[Any] = deque()
        try:
            while True:
                while len(pending) < 2 * self.at_once and (call := take()) is not None:
                    # Submitting may start a process, which waits for data that this process still has to send.
                    with interrupts.held():
                        pending.append(self._submit(*call))
                if not pending:
                    return
                result = self._result(pending[0])  # stays in `pending`: if interrupted, `finally` waits for it
                pending.popleft()
                interrupts.check()
                yield result
        finally:
            for future in pending:
                future.cancel()
            # Running tasks cannot be stopped. Those of a Dask cluster, which run elsewhere, are not waited for.
            running = [future for future in pending if isinstance(future, Future)]
            if wait(running, _PATIENCE_S).not_done:
                self._say("stopping: waiting for workers to finish their tasks")
                wait(running)

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
                interrupts.check()  # a result may never come, as from workers that hang
                _ = self.at_once  # reports if no worker is left
            except BrokenProcessPool as error:
                raise _killed() from error
            except CancelledError as error:
                raise self._gone() from error
            except Exception as error:
                # Dask's exceptions are compared by name: they cannot be imported without Dask.
                if type(error).__name__ == "CommClosedError":
                    raise self._gone() from error
                if type(error).__name__ == "KilledWorker":
                    raise DataError(
                        "Dask workers were killed repeatedly by the same task, most likely out of memory "
                        f"({error}): give each worker more memory"
                    ) from error
                raise

    def _gone(self) -> DataError:
        return DataError(f"{self._address}: the Dask scheduler is gone: start it again, then rerun the same command")

    def __enter__(self) -> "Workers":
        self._watch.enter_context(interrupts.noted())
        self._watch.callback(self._close)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._watch.__exit__(*exception)

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._client is not None:
            self._client.close()


@dataclass(eq=False)
class _Job:
    steps: Steps
    unfinished: int = 0


def _connect(address: str) -> Any:
    try:
        # Dask has no type annotations.
        distributed: Any = import_module("distributed")
        comm: Any = import_module("distributed.comm")
    except ImportError as error:
        raise DataError("--dask needs Dask: pip install 'gm-train[dask]'") from error

    async def answer() -> None:
        security = distributed.Security().get_connection_args("client")
        connection = await comm.connect(address, _ANSWER_S, **security)
        await connection.close()

    # This logger prints how a connection was lost.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        # Test the address first: a client that finds no scheduler keeps trying long after it has raised.
        with ThreadPoolExecutor(1) as thread:  # this thread already has an event loop in a notebook
            thread.submit(asyncio.run, answer()).result()
        return distributed.Client(address, timeout=_ANSWER_S, set_as_default=False)
    except TypeError as error:
        raise DataError(
            f"--dask {address}: the connection needs TLS keys ({error}): name them in Dask's configuration, "
            "`distributed.comm.tls.ca-file`, `client.cert` and `client.key`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"--dask {address}: no scheduler answers ({error}): start one with `dask scheduler` and use the address "
            "that it prints"
        ) from error


def start_server() -> str:
    """Start the fork server, which imports what workers need, and return the start method for multiprocessing.

    Workers are forks of that server, which imports once for all. Forks of this process, which has threads, could hang.

    Returns:
        "forkserver", or "spawn" if the path of TMPDIR is too long for the server's socket.
    """
    is_long = len(os.fsencode(tempfile.gettempdir())) > _LONGEST
    forkserver.set_forkserver_preload(_TASKS)
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # otherwise workers would import modules from the current folder
    try:
        # All workers need it. It unblocks SIGINT when it starts, so start it before `held`.
        resource_tracker.ensure_running()
        if not is_long:
            with interrupts.held():
                forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
    return "spawn" if is_long else "forkserver"


def _begin_worker() -> None:
    """Set up a worker process: keep freed memory, and exit with the parent process."""
    # The kernel zeroes memory that glibc returned and requests again: that took a tenth of the time of medians.
    set_malloc = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_malloc is not None and set_malloc(_M_MMAP_THRESHOLD, 32 << 20):
        set_malloc(_M_TRIM_THRESHOLD, 256 << 20)
    end_with_parent()


def end_with_parent() -> None:
    """Make this process, which multiprocessing has started, exit when its parent process ends, even if it is killed."""
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _killed() -> DataError:
    return DataError("a worker process was killed, most likely out of memory: use fewer --workers")

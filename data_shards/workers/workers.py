"""Running tasks on this machine's processes or on a Dask cluster; results do not depend on which, or on how many."""

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
#: A function, and what it is called with.
Call = tuple[Callable[[Any], Any], Any]
#: Calls of a step each, which is taken when all of the last one's are done.
Steps = Iterator[Sequence[Call]]
_ANSWER_S = 30
#: Seconds for which nothing is said while workers end.
_PATIENCE_S = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: What tasks need, and what they need imports.
_TASKS = ["data_shards.medians.make_medians", "data_shards.prepare.rank_range"]
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
        self._watch = ExitStack()
        if dask is not None:
            self._client = _connect(dask)
        elif count > 1:
            self._pool = ProcessPoolExecutor(count, get_context(start_server()), _begin_worker)

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

    def map_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Generator[Result, None, None]:
        """`function` of each task, in the order of the tasks, with at most two tasks a worker in flight.

        Raises:
            DataError: a worker was killed, the scheduler is gone, or a task raised it.
        """
        calls = ((function, task) for task in tasks)
        yield from self._results(lambda: next(calls, None))

    def run(self, jobs: Iterable[Steps]) -> Iterator[Any]:
        """Run jobs side by side: as many as keep all workers busy, those first that have begun.

        Yields:
            What each call was made with, when it is done.

        Raises:
            DataError: as of `map_in_order`, or a job raised it.
        """
        coming = iter(jobs)
        ready: deque[tuple[_Job, Call]] = deque()
        running: deque[tuple[_Job, Call]] = deque()

        def go_on(job: _Job) -> None:
            calls = next(filter(None, job.steps), ())
            job.unfinished = len(calls)
            ready.extendleft((job, call) for call in reversed(calls))

        def take() -> Call | None:
            while not ready:
                steps = next(coming, None)
                if steps is None:
                    return None
                go_on(_Job(steps))
            running.append(ready.popleft())
            return running[-1][1]

        for _ in self._results(take):
            job, (_, task) = running.popleft()
            yield task
            job.unfinished -= 1
            if not job.unfinished:
                go_on(job)

    def _results(self, take: Callable[[], Call | None]) -> Generator[Any, None, None]:
        """Results of the calls that `take` gives, in their order; None is nothing now, and in the end nothing runs."""
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
                    # It may start a process, which waits for what this one still has to send.
                    with interrupts.held():
                        pending.append(self._submit(*call))
                if not pending:
                    return
                result = self._result(pending[0])  # there to be waited for, too, if this is interrupted
                pending.popleft()
                interrupts.check()
                yield result
        finally:
            for future in pending:
                future.cancel()
            # What runs already cannot be stopped; of a Dask cluster it may be anywhere.
            running = [future for future in pending if isinstance(future, Future)]
            if wait(running, _PATIENCE_S).not_done:
                self._say("stopping: waiting for workers to end what they are at")
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


def start_server() -> str:
    """Let what workers need be imported, beside what this process does, and say how they are started.

    They are forks of a server that imports for all: of this process, which has threads, they could hang.
    """
    is_long = len(os.fsencode(tempfile.gettempdir())) > _LONGEST
    forkserver.set_forkserver_preload(_TASKS)
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"  # or they would import what lies in the current folder
    try:
        resource_tracker.ensure_running()  # workers need it, however started, and as it starts it lets interrupts in
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

"""A process that holds one object and calls its methods on request: one process per contender."""

import contextlib
import multiprocessing as mp
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from data_shards.errors import DataError

_WAIT = 5.0  # seconds to wait for a process to end by itself


class OutOfMemory(Exception):
    """The device has too little memory for a worker's task."""


def _serve(connection: Connection, threads: int | None, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole process group: leave it to the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    try:
        held = make(*args)
        connection.send(("done", None))
        while (request := connection.recv()) is not None:
            method, arguments = request
            connection.send(("done", getattr(held, method)(*arguments)))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except DataError as error:
        connection.send(("failed", str(error)))
    except Exception as error:
        if "torch" in sys.modules and isinstance(error, sys.modules["torch"].OutOfMemoryError):
            connection.send(("memory", str(error).splitlines()[0]))
            return
        text = "".join(traceback.format_exception(error))
        connection.send(("failed", f"{type(error).__name__}: {error}\n{text}"))


class BenchProcess:
    """A process that makes the object `make(*args)` and calls its methods.

    Args:
        name: name in messages.
        threads: number of PyTorch threads; with None, PyTorch is not imported.
        make: makes the object; must be importable by name.
        args: arguments of `make`.
        has_children: whether the object starts processes, which a daemon process must not do.
    """

    def __init__(
        self, name: str, threads: int | None, make: Callable[..., Any], *args: Any, has_children: bool = False
    ) -> None:
        context = mp.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, make, args), daemon=not has_children)
        self._process.start()
        theirs.close()
        self._started = False

    def __enter__(self) -> "BenchProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_started(self) -> None:
        """Wait until the object is made. Several workers that were started before get ready in parallel."""
        if not self._started:
            self._receive()
            self._started = True

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object and return its result.

        Raises:
            OutOfMemory: the device has not enough memory.
            DataError: the method failed, or the process died.
        """
        self.wait_until_started()
        # If the process has ended, `_receive` returns its last message or raises an error with its exit code.
        with contextlib.suppress(BrokenPipeError):
            self._connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(_WAIT)
            code = self._process.exitcode
            killed = code is not None and code < 0
            cause = f"was killed by {signal.Signals(-code).name}" if killed and code else f"ended with code {code}"
            raise DataError(
                f"{self.name}: its process {cause}: if memory ran out, lower --tokens-per-step or the model's size "
                "(bench model), --cells (bench loader) or --workers (bench prepare)"
            ) from error
        if kind == "memory":
            raise OutOfMemory(value)
        if kind == "failed":
            raise DataError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(_WAIT)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(_WAIT)
        self._connection.close()


def call_alone(name: str, threads: int | None, make: Callable[..., Any], *args: Any, method: str = "run") -> Any:
    """Make an object in a fresh process, call one of its methods and return the result.

    Args:
        name: name in messages.
        threads: number of PyTorch threads; with None, PyTorch is not imported.
        make: makes the object; must be importable by name.
        args: arguments of `make`.
        method: name of the method.
    """
    with BenchProcess(name, threads, make, *args) as worker:
        return worker.call(method)

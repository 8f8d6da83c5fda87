"""Make Ctrl-C, and SIGTERM where it is wanted, reliable, whatever code is running."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: The signals that can be noted, with Python's handler of each.
_USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_is_active = False
_is_interrupted = False
_is_deferred = False


@contextmanager
def noted(*numbers: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block if a signal arrived, even if a library swallowed or converted it.

    Python drops exceptions raised in callbacks and finalizers, and compiled code may turn one into a SystemError.
    In nested blocks only the outermost one does this. The block does nothing outside of the main thread, or for signals
    that have a handler other than Python's default.

    Args:
        numbers: SIGINT, SIGTERM or both; without any, SIGINT.
    """
    global _is_active, _is_interrupted
    # Our own handler is still installed if an interrupt arrived in the last lines of an earlier block.
    is_ours = not _is_active and _in_main_thread()
    ours = [n for n in numbers or (signal.SIGINT,) if is_ours and signal.getsignal(n) in (_USUAL[n], _note)]
    if not ours:
        yield
        return
    try:
        _is_active, _is_interrupted = True, False
        for number in ours:
            signal.signal(number, _note)
        yield
        check()
    except Exception as error:
        if _is_interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        _is_active = False
        for number in ours:
            signal.signal(number, _USUAL[number])


def _note(number: int, frame: object) -> None:
    global _is_interrupted
    is_second, _is_interrupted = _is_interrupted, True
    if number == signal.SIGTERM:
        # Schedulers may send it several times: the next one must not stop the removal of what is half-written.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not _is_deferred or (is_second and number == signal.SIGINT):
        raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[None]:
    """Let the signals of a `noted` block raise only in `check` and at the end of this block; a second Ctrl-C does so
    at once.

    For code that an exception must not leave at any place: HDF5 crashes after one in a file object that it writes to,
    and Zarr goes on writing in a thread.
    """
    global _is_deferred
    if _is_deferred or not _is_active or not _in_main_thread():
        yield
        return
    _is_deferred = True
    try:
        yield
    finally:
        _is_deferred = False
    check()


def check() -> None:
    """Raise KeyboardInterrupt if a signal arrived in the current `noted` block; only in the main thread."""
    if _is_active and _is_interrupted and _in_main_thread():
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def held() -> Iterator[None]:
    """Delay Ctrl-C in the main thread until the block ends, and keep it from processes started in the block.

    Ctrl-C reaches the whole process group, but only this process should act on it: it lets workers finish their tasks.
    """
    interrupts = []
    # New processes inherit the mask of this thread. The mask alone is not enough: another thread could take the signal.
    # `getsignal` returns None for a handler that was not installed from Python: it could not be restored.
    is_ours = _in_main_thread() and signal.getsignal(signal.SIGINT) is not None
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True)) if is_ours else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_ours:
            signal.signal(signal.SIGINT, before)
        if interrupts:
            signal.raise_signal(signal.SIGINT)

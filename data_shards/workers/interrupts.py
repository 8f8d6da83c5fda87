"""Ctrl-C that ends what it is to end, whatever was running as it came."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_is_noted = False
_came = False


@contextmanager
def noted() -> Iterator[None]:
    """Raise KeyboardInterrupt in the end if there was one, also where a library swallows or mistakes it.

    Python drops what is raised in callbacks and finalizers, and compiled code may make a SystemError of it. Of several
    such blocks within each other the outermost one does it; none, where SIGINT has a handler already or in a thread.
    """
    global _is_noted, _came
    # Its own handler is there still where an interrupt came in the last lines of such a block.
    usual = (signal.default_int_handler, _note)
    if _is_noted or not _in_main_thread() or signal.getsignal(signal.SIGINT) not in usual:
        yield
        return
    try:
        _is_noted, _came = True, False
        signal.signal(signal.SIGINT, _note)
        yield
        check()
    except Exception as error:
        if _came:
            raise KeyboardInterrupt from error
        raise
    finally:
        _is_noted = False
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _note(number: int, frame: object) -> None:
    global _came
    _came = True
    raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt, in the main thread, if there was one within `noted`."""
    if _is_noted and _came and _in_main_thread():
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C waits for the end of it, in the main thread, and never comes to the processes started meanwhile.

    It reaches the whole group, and is for this process alone, which lets workers finish what they are at.
    """
    came = []
    # The mask alone, which new processes have from this thread, would leave it to another thread to take the signal.
    # A handler that is not Python's could not be put back.
    is_ours = _in_main_thread() and signal.getsignal(signal.SIGINT) is not None
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True)) if is_ours else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_ours:
            signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)

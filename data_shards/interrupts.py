"""Ctrl-C that ends what it is to end, whatever was running as it came."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_came = False


@contextmanager
def noted() -> Iterator[None]:
    """Raise KeyboardInterrupt in the end if there was one, also where a library swallows or mistakes it.

    Python drops what is raised in callbacks and finalizers, and compiled code may make a SystemError of it. Of several
    such blocks within each other the outermost one does it; none, where SIGINT has a handler already.
    """
    global _came
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    _came = False
    signal.signal(signal.SIGINT, _note)
    try:
        yield
        check()
    except Exception as error:
        if _came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _came = False


def _note(number: int, frame: object) -> None:
    global _came
    _came = True
    raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt if there was one within `noted`."""
    if _came:
        raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C waits for the end of it, and never comes to the processes started meanwhile.

    It reaches the whole group, and is for this process alone, which lets workers finish what they are at.
    """
    came = []
    # The mask alone, which new processes have from this thread, would leave it to another thread to take the signal.
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)

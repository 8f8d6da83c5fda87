"""Make Ctrl-C reliable, whatever code is running."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_is_active = False
_is_interrupted = False


@contextmanager
def noted() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block if SIGINT arrived, even if a library swallowed or converted it.

    Python drops exceptions raised in callbacks and finalizers, and compiled code may turn one into a SystemError.
    In nested blocks only the outermost one does this. The block does nothing outside of the main thread, or if SIGINT
    has a handler other than Python's default.
    """
    global _is_active, _is_interrupted
    # Our own handler is still installed if an interrupt arrived in the last lines of an earlier block.
    expected = (signal.default_int_handler, _note)
    if _is_active or not _in_main_thread() or signal.getsignal(signal.SIGINT) not in expected:
        yield
        return
    try:
        _is_active, _is_interrupted = True, False
        signal.signal(signal.SIGINT, _note)
        yield
        check()
    except Exception as error:
        if _is_interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        _is_active = False
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _note(number: int, frame: object) -> None:
    global _is_interrupted
    _is_interrupted = True
    raise KeyboardInterrupt


def check() -> None:
    """Raise KeyboardInterrupt if SIGINT arrived in the current `noted` block; only in the main thread."""
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

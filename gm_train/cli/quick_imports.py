"""Import large packages a sixth faster."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without the garbage collector, which goes through everything that is imported again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

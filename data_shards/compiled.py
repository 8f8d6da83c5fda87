"""Compile loops with numba, and keep the machine code on disk for as long as nothing that it was made of changes.

numba looks at the file of a function to see whether its cached code is stale. It does not look at functions and
numbers that the function takes from other files. Here these are part of the key that the cache is searched by.
"""

import hashlib
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher


class _Cache(FunctionCache):  # type: ignore[misc]
    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(signature, codegen), hashlib.sha256(_uses(self._py_func).encode()).hexdigest())


def _uses(function: FunctionType) -> str:
    """Describe the compiled functions and the numbers that a function takes from its module, and what those take."""
    found = []
    for name in sorted(set(function.__code__.co_names)):
        value = function.__globals__.get(name)
        if isinstance(value, Dispatcher) and value.py_func is not function:
            code: CodeType = value.py_func.__code__
            constants = [constant for constant in code.co_consts if not isinstance(constant, CodeType)]
            found.append(f"{name}: {code.co_code.hex()} {constants!r} {_uses(value.py_func)}")
        elif isinstance(value, int | float | str | tuple | np.generic):
            found.append(f"{name} = {value!r}")
    return "\n".join(found)


def compiled(signature: str | None = None, **options: Any) -> Callable[[FunctionType], Any]:
    """Compile a function with `numba.njit`, without the GIL and with its machine code cached on disk.

    Args:
        signature: its types, as numba writes them, to compile at import; None compiles at the first call, for the types
            of that call.
        options: further options of `numba.njit`.

    Returns:
        A decorator.
    """

    def decorate(function: FunctionType) -> Any:
        dispatcher = numba.njit(nogil=True, **options)(function)
        dispatcher._cache = _Cache(function)
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return dispatcher

    return decorate

"""Compile loops with numba, and cache the machine code on disk until any of its sources changes.

numba checks only the file of a function to see whether its cached code is stale. It ignores functions and numbers that
the function uses from other files. Here these are part of the cache key.
"""

import hashlib
from collections.abc import Callable
from types import CodeType
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher


class _Cache(FunctionCache):
    def _index_key(self, signature: Any, codegen: Any) -> tuple[Any, ...]:
        key: tuple[Any, ...] = super()._index_key(signature, codegen)  # type: ignore[no-untyped-call]
        return (*key, hashlib.sha256(_uses(self._py_func).encode()).hexdigest())


def _uses(function: Any) -> str:
    """Describe the functions and the numbers that a function takes from its module, and what those functions take."""
    lines = []
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        if isinstance(value, Dispatcher) and value.py_func is not function:
            options = sorted(value.targetoptions.items())
            lines.append(f"{name}: {options} {_describe(value.py_func.__code__)} {_uses(value.py_func)}")
        elif isinstance(value, numba.types.ExternalFunction):
            lines.append(f"{name}: {value.symbol} {value.sig}")
        elif isinstance(value, int | float | str | tuple | np.generic):
            lines.append(f"{name} = {value!r}")
    return "\n".join(lines)


def _names(code: CodeType) -> set[str]:
    """The global names and attributes in a function and in the functions inside it."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _describe(code: CodeType) -> str:
    """Everything in a function's code that decides what it computes; not its place in the file."""
    constants = [
        _describe(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def compiled(signature: Any = None, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function with `numba.njit`, without the GIL and with its machine code cached on disk.

    Args:
        signature: types of arguments and result in numba's notation, such as "uint64(uint64)": compiles at import.
            None compiles at the first call, for the types of that call.
        options: further options of `numba.njit`.

    Returns:
        A decorator.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher: Any = numba.njit(nogil=True, **options)(function)
        if not isinstance(dispatcher, Dispatcher):
            return dispatcher  # NUMBA_DISABLE_JIT is set: the function itself
        dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call, attr-defined]
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return dispatcher

    return decorate
